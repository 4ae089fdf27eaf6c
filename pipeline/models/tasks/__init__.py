"""Tasks: readout, loss, metrics and drawing. Every file here is one, found by its name.

Read `contract` first, then `classify`.
"""
