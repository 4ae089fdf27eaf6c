"""What a media file says of itself beyond what libav hands to Python.

In: a file, opened or by its path. Out: which of its streams is the video, how its pictures are to
be shown, how many there can be, and whether the end of it is missing.

Read `choice` (covers and renditions), `track_header` (cropping), `pixel_aspect`, `recount` (headers
that promise too much), and `shortfall` with `torn_end` (what a header promises, what the bytes
show).
"""
