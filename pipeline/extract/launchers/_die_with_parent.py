"""A worker whose stdin is a pipe held by whoever started it: when that process is no more, the
worker and its children go too.

The end of the pipe is noticed however the other side died. (Linux' own signal at the death of a
parent comes at the death of the thread that started the child, and never reaches its children.)
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from pipeline.extract.launchers.contract import run_worker


def _end_with_the_pipe() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_pipe, name="leash", daemon=True).start()
    sys.exit(run_worker(*sys.argv[1:]))
