"""`python -m pipeline.cli` is the command `stillframe`."""

from pipeline.cli import entry

if __name__ == "__main__":
    entry()
