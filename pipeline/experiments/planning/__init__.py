"""What a cache and its trainings will take, before they are made.

Read `plan`, with `measure` (both stages timed on a `subset` of the videos) and `uncached` (training
without a cache).
"""
