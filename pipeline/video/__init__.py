"""A video file, or a folder of images, becomes the encoder's squares.

In: a path, and the times that are wanted. Out: uint8 RGB frames with their presentation times in
seconds, resized and cropped to the encoder's square, with the affine from source coordinates to the
square.

Read `probe` (what a file says of itself, nothing decoded), `decode` (frames by time), `rgb` (one
decoded picture, upright), `transforms` (frame to square), then `sandbox` and `decode_process`: the
same decoding in a process of its own, under limits.
"""
