"""Runs and caches go to the Hugging Face hub, and come back whole or not at all.

In: a finished run, or a whole cache; an address such as `hf://user/name`. Out: a repository with a
card, whose receipts were committed last; a folder in which everything is as it was pushed.

Read `address`, `repository` (what the hub is asked, and its errors in one line), `contents` (which
files are shared, without the places of this machine), `card`, then `push` and `pull`.
"""
