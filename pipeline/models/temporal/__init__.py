"""Temporal modules, all causal: every file here is one, found by its name.

Read `contract` first, then `identity` and `gru`.
"""
