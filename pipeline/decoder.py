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
        many = len(rates) > 1
        if many:
            times = [self._times(path, rate, image_fps) for rate in rates]
        for f in frames.decode(path, None if many else rates[0], image_fps):
            n += len(f)
            yield Block(f, np.stack([np.isin(f.time_s, one) for one in times]) if many else np.ones((1, len(f)), bool))
        if not many and rates[0] is not None:
            n = len(self._times(path, None, image_fps))
        self.counted = Content(decoded=n, header=None)

    def _times(self, path, rate, image_fps):
        times = []
        try:
            for f in frames.decode(path, rate, image_fps):
                times += f.time_s.tolist()
        except Exception:
            pass
        return times
