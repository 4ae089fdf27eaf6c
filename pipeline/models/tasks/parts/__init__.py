"""Several tasks are built of these parts: readouts by attention and by query, likeness of tokens,
rotations, TAP-Vid metrics, a canvas to draw on."""
