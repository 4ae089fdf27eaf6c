"""Data sets by the shape of their folders: settings say where frames and truth lie, and how the
truth is written.

In: a user's folder and such settings, or the name of a preset. Out: clips with their truth, for the
plug-ins that stand on a shape. `patterns` finds the files; `box_columns` reads one file of boxes,
`box_sequences` makes clips of boxes and frames, and `box_presets` has the published data sets;
`pose_files` and `depth_maps` read what stands beside frames of a recording.
"""
