"""What a media file says of itself beyond what libav hands to Python.

In: a file, opened or by its path. Out: which of its streams is the video, and how its pictures are
to be shown.

Read `choice` (covers and renditions), `track_header` (cropping) and `pixel_aspect`.
"""
