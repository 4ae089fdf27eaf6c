"""Moments of videos are found by words, or by an example, in the cached tokens.

In: a cache of an image-text model, and sentences or a moment. Out: the best moments of all videos,
with scores, and a page of them.

Read `index` (embeddings of all frames, in one file), `moments` (queries and what they find), then
`page`.
"""
