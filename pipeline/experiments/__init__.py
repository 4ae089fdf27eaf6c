"""Many runs on one cache: planned before, trained side by side, compared after.

In: a cache and a sweep (axes over the keys of a recipe). Out: runs, and their scores and gains with
intervals.

Read `plan`, with `measure` (both stages timed on a `subset` of the videos) and `uncached` (training
without a cache); then `sweep_spec` (axes become runs), `sweep_caches`, `sweep` (who trains what);
then `summary`, with `resampling` (intervals over videos) and `seed_variance` (what other seeds
would have scored).
"""
