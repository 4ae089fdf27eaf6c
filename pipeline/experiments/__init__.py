"""Many runs on one cache: planned before, trained side by side, compared after.

In: a cache and a sweep (axes over the keys of a recipe). Out: runs, and their scores and gains with
intervals.

Read `planning` (what it will take); then `sweep_spec` (axes become runs), `sweep_caches`, `sweep`
(who trains what) and `launched` (one training as a job); then `summary`, with `resampling`
(intervals over videos) and `seed_variance` (what other seeds would have scored).
"""
