"""A TOML file that says what to cache becomes a checked `CacheSpec`, and its meaning a
fingerprint."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from pipeline.config import plugins
from pipeline.config.outside import Origin
from pipeline.config.plugins import Settings
from pipeline.config.toml_tables import override, read_own, set_nested
from pipeline.errors import BadInput
from pipeline.records import Rate, Stride, TokenShape

FORMAT_VERSION = 3
"""Format of the caches that are written; all formats before it can be read."""
IMPLIED: dict[str, Any] = {"frames.damaged": "keep"}
"""Key of a spec that format 3 added, such as `frames.fit` -> its value for caches of older formats,
whose specs do not have the key. No default is needed here."""
NAME = re.compile(r"[a-z0-9][a-z0-9_]*")
BASE = "base"
"""The view that every cache has: the square that `frames` describes."""
ARRAY = re.compile(r"special|layer_|time_s|affine|video_")
"""Beginnings of the names in a store that are no view's."""
DEFAULT_CODEC = "float16"
"""The codec of a spec that names none."""
DEFAULT_DECODER = "pyav"
"""The decoder of a spec that names none."""
SMALLEST_CROP = 0.1
"""Side of a view's crop, of the square: less would be made of too few pixels."""


def _plain(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError("wanted lower-case letters, digits and underscores")
    return name


PlainName = Annotated[str, AfterValidator(_plain)]
"""A name that folders are called by."""


class Choice(Settings):
    """A plug-in and its settings: `name = "..."` and the plug-in's own keys beside it."""

    name: str
    settings: Any
    origin: Origin | None = None
    """Which plug-in of that name it is; None where it ships with the package."""

    def table(self) -> dict[str, Any]:
        """As plain JSON; the key `from` is there for a plug-in from outside alone."""
        origin = {plugins.FROM: self.origin} if self.origin else {}
        return {"name": self.name, **origin, **self.settings.model_dump(mode="json")}


def choice(kind: str, table: Any, where: str = "") -> Choice:
    """Checks a `[kind]` table against the named plug-in's own settings. Raises BadInput where it
    says that another plug-in of that name is meant than there is. `where`: beginning of errors."""
    if isinstance(table, Choice):
        return table
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise BadInput(
            f"{where}[{kind}] must be a table with a name, found {table!r}",
            f"names: {', '.join(plugins.names(kind))}",
        )
    name = table["name"]
    if plugins.FROM in table:
        plugins.require_origin(kind, name, table[plugins.FROM], where)
    rest = {key: value for key, value in table.items() if key not in ("name", plugins.FROM)}
    return Choice(
        name=name,
        settings=plugins.settings(kind, name, rest, f"{where}[{kind}] {name}"),
        origin=plugins.origin_of(kind, name),
    )


class FrameSettings(Settings):
    """These settings choose the frames that are cached, and how a frame becomes a square."""

    fps: float | Literal["all"] = "all"
    """Frames per second of presentation time; a frame is never stored twice. "all": every frame, or
    every n-th, see every."""
    every: int = Field(default=1, ge=1)
    """n, where every n-th frame is kept, whenever it is shown: steps are as even as those of the
    video. Instead of fps."""
    sampling: Literal["time", "stride"] = "time"
    """The way a rate is kept. time: the frames on screen every 1 / fps seconds; stride: every n-th
    frame, n being the video's own rate over fps, rounded (the released code of the paper)."""
    size_px: int = Field(ge=1, le=4096)
    """Side of the square the encoder sees."""
    fit: Literal["crop", "squash"] = "crop"
    """The way a frame becomes a square. crop: the short side is resized to size_px, and the centre
    is cut out; squash: both sides are resized to size_px."""
    resample: Literal["bilinear", "bicubic"] = "bicubic"
    """Kernel that frames are resized with."""
    antialias: bool = True
    """Widen the kernel where a frame is made smaller, so that all of its pixels count; false: the
    released code of the paper."""
    pixel_aspect: bool = True
    """Honour the shape of pixels that are not square; false: take them as square (the released code
    of the paper)."""
    damaged: Literal["list", "keep"] = "list"
    """What becomes of frames that are damaged, or rest on damage. list: they are left out, and
    their video is listed with which they are and why; keep: they are cached as the decoder shows
    them, and the receipt says which they are."""
    decoder: Literal["pyav", "torchcodec"] = "pyav"
    """What decodes videos. pyav: libav, in processes that are watched, on the CPU; torchcodec:
    torchcodec, on the device of the encoder and in the process that encodes, unwatched. It knows of
    no damaged frames, and some videos are refused (`pip install 'stillframe[torchcodec]'`)."""

    uneven: Literal["warn", "refuse"] = "warn"
    """What extraction and plan do where the rate of a video is no whole multiple of fps, so that
    its steps differ in length. It is no part of what a cache is made from."""

    @field_validator("fps")
    @classmethod
    def _positive(cls, fps: float | str) -> float | str:
        if isinstance(fps, float | int) and not 0 < fps <= 1000:
            raise ValueError('wanted a number in (0, 1000] or "all"')
        return fps

    @model_validator(mode="after")
    def _one_stride(self) -> Self:
        if self.every > 1 and self.fps != "all":
            raise ValueError(
                f"every = {self.every} counts frames of the video, fps = {self.fps:g} seconds: "
                'wanted one of them (fps = "all" where every is given)'
            )
        if self.sampling == "stride" and self.fps == "all":
            raise ValueError('sampling "stride" wants fps, a number of frames per second')
        return self

    @property
    def rate(self) -> float | None:
        """Frames per second, or None for every frame, or every n-th."""
        return None if self.fps == "all" else float(self.fps)

    @property
    def kept(self) -> Rate:
        """Which frames of a video are kept."""
        if self.every > 1:
            return Stride(every=self.every)
        return self.rate if self.rate is None or self.sampling == "time" else Stride(self.rate)

    def canonical(self) -> dict[str, Any]:
        """As plain JSON, defaults filled in; `every` if it is not 1, `decoder` if it is not the
        default, and `uneven` never."""
        are_default = {"every": self.every == 1, "decoder": self.decoder == DEFAULT_DECODER}
        left_out = {"uneven"} | {key for key, is_default in are_default.items() if is_default}
        return self.model_dump(mode="json", exclude=left_out)


class View(Settings):
    """Another look at every cached frame: a part of the square, or its mirror image, or both."""

    name: PlainName
    """Name that recipes draw it by, and of its group in a store."""
    flip: bool = False
    """Mirror it, left to right."""
    crop: tuple[float, float, float, float] | None = None
    """x0, y0, x1, y1 in [0, 1] of the square: this part is resampled from the source's own pixels.
    None: all of it."""

    @field_validator("name")
    @classmethod
    def _free_name(cls, name: str) -> str:
        if name == BASE or ARRAY.match(name):
            raise ValueError("names something else in a store")
        return name

    @field_validator("crop")
    @classmethod
    def _inside(
        cls, crop: tuple[float, float, float, float] | None
    ) -> tuple[float, float, float, float] | None:
        if crop is not None:
            x0, y0, x1, y1 = crop
            if min(x0, y0) < 0 or max(x1, y1) > 1 or min(x1 - x0, y1 - y0) < SMALLEST_CROP - 1e-9:
                raise ValueError(
                    f"wanted x0, y0, x1, y1 in [0, 1], each side at least {SMALLEST_CROP:g}"
                )
        return crop

    @model_validator(mode="after")
    def _is_another(self) -> Self:
        if not self.flip and self.crop in (None, (0, 0, 1, 1)):
            raise ValueError(f"view '{self.name}' is the base itself: wanted flip = true or a crop")
        return self


class StoreSettings(Settings):
    """These settings lay frames out on disk. One store is written by one worker and lost as a whole
    by a kill."""

    chunk_frames: int = Field(default=8, ge=1, le=4096)
    """Frames per Zarr chunk, the unit of compression and of general reads."""
    shard_mb: float = Field(default=256, gt=0, le=100_000)
    """Size of a shard file."""
    store_mb: float = Field(default=512, gt=0, le=10_000_000)
    """Size of a store for each recorded layer of the base: which videos a store holds does not
    depend on how many layers and views there are, so that one can be added later."""
    store_frames: int | None = Field(default=None, ge=1)
    """Frames of a store at most, to the next whole video, however small they are: what a stop can
    lose. None: store_mb alone counts."""
    compression: Literal["none", "zstd"] = "none"
    """Lossless packing of every chunk. none: windows are read at the speed of the disk; zstd:
    smaller where bytes repeat, slower."""
    batch_frames: int = Field(default=32, ge=1, le=4096)
    """Frames per call of the encoder. Fixed by the spec, so that a store has the same bytes whoever
    writes it."""

    def canonical(self) -> dict[str, Any]:
        """As plain JSON, defaults filled in; `store_frames` if there is one."""
        table = self.model_dump(mode="json")
        return {key: value for key, value in table.items() if value is not None}


class CacheSpec(Settings):
    """A spec says what to cache. Two specs that differ in one field give two caches."""

    name: PlainName
    """Name that the cache's folder begins with, in lower-case letters, digits and underscores;
    None: that of the file."""
    encoder: Choice
    frames: FrameSettings
    codec: Choice
    store: StoreSettings = StoreSettings()
    views: tuple[View, ...] = ()
    """Kept beside the base, each with the same layers."""

    @model_validator(mode="before")
    @classmethod
    def _plugins(cls, table: Any) -> Any:
        table = dict(table)
        table.setdefault("codec", {"name": DEFAULT_CODEC})
        return table | {
            kind: choice(kind, table[kind]) for kind in ("encoder", "codec") if kind in table
        }

    @field_validator("views")
    @classmethod
    def _named_apart(cls, views: tuple[View, ...]) -> tuple[View, ...]:
        names = [view.name for view in views]
        if len(set(names)) < len(names):
            raise ValueError(f"two views have the same name, names are {', '.join(names)}")
        return views

    def canonical(self) -> dict[str, Any]:
        """The whole spec as plain JSON, defaults filled in; what the cache keeps and what is
        compared; `views` if any."""
        views = (
            {"views": [view.model_dump(mode="json") for view in self.views]} if self.views else {}
        )
        return {
            "name": self.name,
            "encoder": self.encoder.table(),
            "frames": self.frames.canonical(),
            "codec": self.codec.table(),
            "store": self.store.canonical(),
            **views,
        }

    def tokens_per_frame(self, shape: TokenShape) -> int:
        """Tokens of one frame in all layers and views together."""
        return shape.tokens_per_frame * (1 + len(self.views))


def fingerprint(
    spec: CacheSpec,
    identity: dict[str, Any],
    decoder: str,
    fitted_to: str | None = None,
    derived_from: str | None = None,
) -> str:
    """The fingerprint of a spec's cache in the format that is written, see `fingerprint_of`."""
    return fingerprint_of(
        spec.canonical(), identity, decoder, FORMAT_VERSION, fitted_to, derived_from
    )


def fingerprint_of(
    canonical: dict[str, Any],
    identity: dict[str, Any],
    decoder: str,
    format_version: int,
    fitted_to: str | None = None,
    derived_from: str | None = None,
) -> str:
    """12 hex digits over meaning: encoder weights and configuration, every other field of the
    canonical spec, decoder, format version.

    `fitted_to`: digest of the manifest that the codec is fitted to, if it is. `derived_from`:
    fingerprint of the cache that the tokens come from, if not from videos. Where the encoder came
    from (a path or a hub id) is left out, as `identity` says what it is: moving things changes
    nothing. An older cache gives its own format and its spec as it was written: keys that were
    added to specs since then change nothing.
    """
    meaning = {key: value for key, value in canonical.items() if key != "name"}
    meaning["encoder"] = encoder_meaning(canonical["encoder"], identity)
    meaning |= {"decoder": decoder, "format_version": format_version}
    origins = {"fitted_to": fitted_to, "derived_from": derived_from}
    meaning |= {name: value for name, value in origins.items() if value is not None}
    text = json.dumps(meaning, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def encoder_meaning(table: dict[str, Any], identity: dict[str, Any]) -> dict[str, Any]:
    """All that tokens depend on in an encoder whose table in a canonical spec is `table`."""
    kept = {key: table[key] for key in ("name", plugins.FROM, "layers") if key in table}
    return kept | {"identity": identity}


def with_implied(canonical: dict[str, Any], format_version: int) -> dict[str, Any]:
    """The canonical spec of a cache with the keys that its format did not have yet."""
    if format_version == FORMAT_VERSION:
        return canonical
    table = copy.deepcopy(canonical)
    for key, value in IMPLIED.items():
        section, _, last = key.rpartition(".")
        set_nested(table, key, table.get(section, {}).get(last, value))
    return table


def load_spec(path: Path, overrides: Sequence[str] = ()) -> CacheSpec:
    """The spec in a TOML file, with `--set` laid over it. Plug-ins may be named by their files,
    relative to it. Raises BadInput."""
    return plugins.validate(CacheSpec, override(read_own(path, "spec"), overrides), str(path))
