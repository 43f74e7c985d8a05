"""Makers of random inputs for ``fuzz.py``, a module each.

A module has ``inputs(generator)``, which yields without end (what the input is, a call that gives it to the project).
The call returns where the input was taken rightly; raises an ``AssertionError`` where it was taken wrongly without a
word, such as an object that was dropped; and lets every other error through: the project's own are right answers.
"""
