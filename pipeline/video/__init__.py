"""A video file, or a folder of images, becomes the encoder's squares.

In: a path, and which frames. Out: uint8 RGB squares with their presentation times in seconds, and
the affine from source coordinates to the square.

Read `probe` with `containers/` (what a file says of itself, nothing decoded), `decode` (frames by
time), `damage` (which are sound), `rgb` (one decoded picture, upright), `transforms` (frame to
square), `isolated` (decoding in a process of its own, under limits), then `reader`, through which
every other room reads videos.
"""
