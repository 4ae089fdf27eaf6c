"""Videos of the built-in world of which something is said, in a cache of a small CLIP."""

from __future__ import annotations

from pathlib import Path

from pipeline.cache.cache import Cache
from pipeline.config import plugins
from pipeline.config.cache_spec import CacheSpec
from pipeline.datasets import world
from pipeline.datasets.manifest.manifest import write
from pipeline.datasets.manifest.texts import ClipTexts
from pipeline.extract.extract import extract
from pipeline.records import Clip
from support.image_text import save_image_text

WIDTH = 24
"""Of the CLIP's embeddings."""


class Spoken(world.Dataset):
    """The built-in world, with a caption of every clip."""

    def texts(self, clip: Clip) -> ClipTexts:
        label, _, number = clip.clip_id.rpartition("_")
        return ClipTexts(captions=(f"{number[-2:]} {label[:8]}",))


def spoken_cache(root: Path, clips_per_class: int = 2) -> Cache:
    """Eight kinds of motion; all files are below `root`, the CLIP in its folder `clip`."""
    model = save_image_text("clip", root / "clip")
    settings = world.Settings(clips_per_class=clips_per_class, frames=8, size_px=32)
    (root / "data").mkdir()
    videos = write("world", Spoken(root / "data", settings), root / "data")
    table = {
        "name": "spoken",
        "encoder": {"name": "transformers", "model": str(model), "layers": [2]},
        "frames": {"size_px": 32},
    }
    return extract(plugins.validate(CacheSpec, table, "test"), videos, root / "caches")
