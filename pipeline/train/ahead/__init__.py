"""Answers about frames that nobody has seen yet: one run forecasts tokens, and another reads them.

In: a run that reads and a run that forecasts, of the same cache. Out: scores of the answers told
ahead, beside those to the frames that came; a stream of both. The models themselves are in
`models/ahead`. Read `pair` (which two go together, and how far ahead), `scores`, `stream`.
"""
