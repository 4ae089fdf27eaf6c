"""How tokens become bytes: every file here is a codec, found by its name.

Read `contract` first.
"""
