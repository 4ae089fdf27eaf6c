"""Tokens on disk, which outlive every run.

In: tokens of whole videos. Out: the rows that a reader asks for, or one sentence on what is missing
or damaged.

Read `layout` (every name on disk), `codecs/` (tokens as bytes) and `storage/` (folder or object
store), then up from the bytes: `shard/`, `store_writer`, `store` (its reader), `receipts`,
`codec_parameters`, `cache` (what is there), `commit` (how it changes), `leases` (who is at which
store); `corruption`, `verify` and `status`, which look at all of it; last `parts/`.
"""
