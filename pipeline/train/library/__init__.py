"""What somebody else's Python program gets of caches, runs and frames: tensors, a data set of
windows, a module. `import stillframe` names all of it.

In: a cache, a run, or frames. Out: `ClipTokens`, `WindowBatch`, `TrainedModel`, `FrameTokens`.

Read `token_cache` (a clip as tensors), `window_dataset` (for a loop of one's own), `trained_model`
and `frame_encoder` (stage one without a cache).
"""
