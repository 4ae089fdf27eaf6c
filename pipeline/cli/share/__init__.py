"""What leaves, and what comes from elsewhere: commands for runs, features and repositories.

In: a run or a cache; files and repositories of others. Out: files of other tools; runs and caches.

`checkpoints` (released ones become runs), `runs` (a step as a file), `features` (plain arrays),
`hub` (the Hugging Face hub).
"""
