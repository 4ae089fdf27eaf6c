"""Runs, caches and features leave for other tools, and come back.

In: a trained run; a folder of features; a cache. Out: one step of a run's model as a file that
needs neither this package nor PyTorch; a cache of the features; tokens as plain files; a
repository of the Hugging Face hub.

Read `ports` (names and shapes), `step` (one step as one function), `formats` (that function as a
file), `runner` (a file is run), `outside` and `loaded` (in a process of its own), `parity` (it says
what the run says), `encoder`, `export`; `feature_files`, `import_features`, `export_features`; in
`hub/`, what a repository is.
"""
