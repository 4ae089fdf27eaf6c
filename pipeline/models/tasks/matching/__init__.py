"""Videos and texts as vectors of one space: how a video becomes one, what training asks of both,
and how well each finds the other. Read `readouts`, `losses`, `ranks`."""
