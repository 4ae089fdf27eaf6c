"""Gates that can be watched."""

from __future__ import annotations

from torch import nn


class Gate(nn.Identity):
    """Passes the openings of a gate on, numbers from 0 to 1: the place where a forward hook can watch them.

    One frame of one stream has its N tokens first: whatever else the shape says, it can be viewed as (N, channels).
    """

    def __init__(self, opens: str) -> None:
        """`opens`: what an open gate (1) does, for a reader."""
        super().__init__()
        self.opens = opens
