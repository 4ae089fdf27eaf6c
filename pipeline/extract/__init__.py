"""Stage one: videos become a cache.

In: a spec, a manifest and its videos; or, for `derive`, another cache. Out: stores with receipts,
the same bytes whoever worked on them and however often they were stopped.

Read `extract` (plans, makes or opens caches), `worker` (takes stores that nobody is at), `encode`
(decode, encode, write, overlapping) and `store_builder`; then `calibrate`, `reuse` and `progress`.
`in_parts` does it part by part; `derive` and `upkeep/` work on caches that are there; `launchers/`
start workers on this machine, on Slurm or on Ray.
"""
