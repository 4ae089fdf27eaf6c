"""A data set written down: `manifest.jsonl` with a line for each clip, and `targets.h5` with its
truth."""
