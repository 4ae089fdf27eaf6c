"""What is there, and what is in effect: names to choose from, and the keys of one file.

Read `commands`, then `settings` (every key of a recipe, spec or sweep) and `listing` (all names).
"""
