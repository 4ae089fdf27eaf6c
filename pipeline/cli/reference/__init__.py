"""The reference: pages and JSON schemas under docs/reference, made from the code they describe.

`python -m pipeline.cli.reference` (in short: make docs) writes them, and the rooms in the README.
Read `schema` (what a TOML file may hold), `commands` and `pages`.
"""
