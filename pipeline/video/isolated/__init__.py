"""Decoding in a process of its own, under limits: `sandbox` is the side that asks and watches,
`decode_process` the side that decodes, and `packets` what passes between them.
"""
