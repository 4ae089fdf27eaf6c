"""Lists of published action data sets: which file is a clip, of which class, in which split.

In: files as they were released, in text, CSV or JSON. Out: rows of clips that are there.

Read `entries` (what any list says), then `text_lists`, `tables` and `class_names`, which read the
files, `listed_media`, which finds the videos, and `action_lists`, which tells the lists apart.
"""
