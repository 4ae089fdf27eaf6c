"""What is there, and what is in effect: names to choose from, the keys of one file, this machine.

Read `commands`, then `settings` (every key of a recipe, spec or sweep), `listing` (all names) and
`doctor` (whether all that is needed is there), which asks `requirements` and `probes`.
"""
