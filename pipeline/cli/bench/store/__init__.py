"""Measurements of tokens on disk: reading a store beside other formats, writing one, and what each
codec costs and keeps."""
