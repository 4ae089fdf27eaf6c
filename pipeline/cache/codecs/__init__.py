"""Codecs, which turn tokens into bytes: every file here is a codec, found by its name.

Read `contract` first.
"""
