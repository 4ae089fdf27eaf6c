from dataclasses import dataclass

import numpy as np

from pipeline import frames
from pipeline.ledger import Content
from pipeline.plugins import Settings


class DecodeLimits(Settings):
    """x"""

    stall_s: float = 60
    """x"""


@dataclass
class Block:
    frames: object
    kept_RF: np.ndarray


class Decoder:
    def __init__(self, limits):
        self.counted = None

    def __enter__(self):
        return self

    def __exit__(self, *a):
        pass

    def decode(self, path, rates, image_fps):
        n = 0
        assert len(rates) == 1
        for f in frames.decode(path, rates[0], image_fps):
            n += len(f)
            yield Block(f, np.ones((len(rates), len(f)), bool))
        self.counted = Content(decoded=n, header=None)
