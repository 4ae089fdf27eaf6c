"""Moments of videos are found by words, or by an example, in the cached tokens.

In: a cache of an image-text model, and sentences or a moment. Out: the best moments of all videos,
with scores, and a page of them.

Read `queries` (what is looked for), `moments` (what is found in the embeddings of all frames), then
`page`.
"""
