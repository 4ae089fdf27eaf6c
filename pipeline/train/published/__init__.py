"""Released checkpoints become runs, without executing anything in them.

In: a `.ckpt` that somebody else wrote. Out: a run folder. `pickled` reads a pickle as inert values,
`torch_file` finds the tensors behind them, `import_checkpoint` gives them their places.
"""
