"""Runs, caches and features leave for other tools, and come back.

In: a trained run. Out: one step of its model as a file that needs neither this package nor PyTorch,
with everything named in it and in a JSON beside it.

Read `ports` (names and shapes), `step` (one step as one function), `formats` (that function as a
file), `runner` (a file is run), `outside` and `loaded` (in a process of its own), `parity` (it says
what the run says), `encoder`, then `export`.
"""
