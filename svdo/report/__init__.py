"""Declared tables: ``spec`` what they say, ``collect`` from the run store, ``render``, and ``cli`` with the four verbs."""
