"""Windows of T frames: cache and truth become batches.

In: a cache, a manifest, window settings. Out: batches of tokens with their truth. Read `index`
(which clips, which rows), `order` (which window when), `kept` (which of its patches), `reader`
(rows become tokens), `windows` (all of it together).
"""
