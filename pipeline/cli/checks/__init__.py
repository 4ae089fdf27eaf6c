"""`stillframe check-plugin`: the laws of plug-ins, for the authors of those outside the package.

In: the file or the name of a plug-in. Out: which laws hold, or the first that is broken.

Read `check_command`, then `subjects` (what laws of a kind are tried on) and `common_laws`; the laws
of a kind are in `_laws.py` beside its contract.
"""
