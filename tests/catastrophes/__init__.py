"""Catastrophes with real processes: a driver that anybody can run, and tests.

``python -m tests.catastrophes --minutes 20 --seed 1`` in the folder of the project runs the
driver; `driver` says what it does. The tests beside it show one catastrophe each.
"""
