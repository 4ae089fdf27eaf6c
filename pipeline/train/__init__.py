"""Stage two: temporal modules and readouts, trained and scored from cached tokens.

In: a recipe, a cache and a manifest. Out: a run folder with checkpoints, metrics and evaluations; a
stream of predictions.

Read `windows` (cache and truth become batches), `language` (what is said of videos),
`compatibility` and `setup`, `trainer` (one run), `loop` (runs side by side on one read), `follow`
(the cache is still being filled), `run` (the folder), `evaluate` with `bootstrap`; then `stream`,
`visualize`, and `ahead` (one run reads what another forecasts). `distributed` counts processes,
`trackers` hands numbers to those who watch, and `weights` brings in those of other runs.
"""
