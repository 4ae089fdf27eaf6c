"""Masks of objects, as video object segmentation keeps them, become boxes and points.

In: one image for each frame that has masks, whose values are objects. Out: `boxes`, `points` and
`visible` at the times of these frames.

Read `mask_files` (one image), `mask_points` (what points a mask gives, and what they are not) and
`mask_truth` (a whole sequence).
"""
