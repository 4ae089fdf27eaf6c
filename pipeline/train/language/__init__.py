"""What language says about videos: texts beside a manifest, embeddings of frames beside a cache.

In: a cache of an image-text model, texts, a text tower. Out: vectors that are compared with each
other; each is made once and kept. Read `frame_embeddings` (tokens become embeddings),
`frame_index` (those of all frames of a cache), `tower` and `kept_texts` (those of texts), then
`language` (all that a task asks for).
"""
