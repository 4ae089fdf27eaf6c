"""What several tasks are built of: readouts by attention and by query, rotations, TAP-Vid metrics,
a canvas to draw on."""
