"""Where workers run: every file here is an engine, found by its name.

Read `contract` first.
"""
