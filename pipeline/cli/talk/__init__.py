"""How much is said, and what is kept of it.

Read `loudness` (--quiet, --verbose), `details` (what --verbose adds) and `log_file` (what is said,
kept beside what is made).
"""
