"""Data sets of videos with captions: which clips there are, and which sentences describe each.

In: lists of sentences, as they were released, in text, CSV or JSON. Out: clips with their captions.

Read `described` (what any list says), then `list_files` and `caption_rows`, which read the files,
and `captioned_dataset`, which finds the videos and makes clips.
"""
