"""Tokens on disk, which outlive every run.

In: tokens of whole videos. Out: the rows that a reader asks for, or one sentence on what is missing
or damaged.

From the bytes up: `codecs/` (tokens as bytes) and `storage/` (folder or object store); `shard`,
`store`, `receipts` (what a cache says of itself), `cache` (planned, stored, failed); `leases` (who
is at which store), `page_cache`; then `corruption`, `verify` and `status`, which look at all of it.
"""
