"""Frozen text models: texts become embeddings of texts and of their tokens. Every file here is a
text tower, found by its name.

Read `contract` first; `parts.image_head` is the other half of an image-text model.
"""
