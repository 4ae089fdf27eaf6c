"""Data sets say which clips there are, and what is true of each.

In: a data set as its users have it on disk, or nothing (the built-in world is rendered). Out: a
manifest: one line for each clip, and truth with times of its own in `targets.h5`.

Every file here is a data set, found by its name; `contract` says what one must offer, and `folder`
is the simplest. Then read `manifest/` (clips and truth on disk, and truth as a window sees it);
`formats/` reads what several data sets share, `lists/` published lists of clips, `masks/` masks,
`shapes/` what settings describe, `asked/` questions, and `synthetic/` renders the built-in world.
"""
