"""Files that a user writes become checked settings.

In: TOML files and `--set` on the command line. Out: a `CacheSpec` (what to cache), a `Recipe` (what
to train), plug-ins loaded by name, and JSON files read as checked records.

Read `plugins` (the file system is the registry), then `cache_spec` and `recipe`; `toml_tables` and
`json_files` are the two file formats. `recipes/` and `sweeps/` are what ships with the package.
"""
