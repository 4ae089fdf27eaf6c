"""What leaves, and what comes from elsewhere: commands for checkpoints, runs and features.

In: a run or a cache; files of others. Out: files of other tools; runs and caches.

`checkpoints` (released ones become runs), `runs` (a step as a file), `features` (plain arrays).
"""
