"""Weights from elsewhere: those of another run begin a training, and released checkpoints become
runs. Nothing is executed in what others wrote.

In: a run folder, or a `.ckpt`. Out: tensors in their places, with a digest; or a run folder. Read
`initial` and `seen_videos`; then `pickled` (a pickle as inert values), `torch_file` (the tensors
behind them), `import_checkpoint` (their places).
"""
