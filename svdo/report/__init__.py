"""Declared tables.

``spec`` says what is declared, ``composing`` makes configurations of it, ``evidence`` finds in the run store (``records``) what
it rests on, ``values`` makes cells of that, ``distances`` and ``verdict`` judge cells and claims, ``expected`` tells what a run
takes. ``measuring`` measures what no run's record holds, one file each in ``measures``; ``watch`` looks closer at runs.
``render`` and ``page`` write tables and ``results/README.md``, ``figures`` has a file for each picture, ``cli`` the verbs.
"""
