"""Declared tables.

``spec`` says what is declared, ``collect`` takes it from the run store, ``measures`` measures what no run's record holds,
``watch`` looks closer at runs, ``render``, ``figures`` and ``index`` write tables, pictures and claims, ``cli`` has the verbs.
"""
