"""What a media file says of itself beyond what libav hands to Python.

In: a file, opened or by its path. Out: which of its streams is the video, how its pictures are to
be shown, how many there can be, and whether any of it is encrypted or missing.

Read `choice` (covers and renditions), `track_header` (cropping, encryption), `pixel_aspect`,
`recount` (headers that promise too much), `shortfall` with `torn_end` (what a header promises, what
the bytes show) and `transport_stream` (lost packets).
"""
