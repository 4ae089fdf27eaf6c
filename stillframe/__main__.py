"""`python -m stillframe` is the command `stillframe`, and so is `torchrun ... -m stillframe`."""

from pipeline.cli import entry as main

if __name__ == "__main__":
    main()
