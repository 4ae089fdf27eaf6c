"""Frozen image models: uint8 frames become patch tokens and special tokens. Every file here is an
encoder, found by its name.

Read `contract` first.
"""
