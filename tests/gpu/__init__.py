"""`make gpu`: everything that there is to measure on a GPU, in a few minutes, into one JSON and one Markdown file.

Read `parts` (what is run, in which order), then `running`, `record` and `tables` (what is written of it).
"""
