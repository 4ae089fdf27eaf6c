"""The page itself: one HTML file that holds everything it shows."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image

from pipeline.report.frames.token_maps import Film
from pipeline.report.frames.videos import DrawnVideo
from pipeline.report.tables import Table

HERE = Path(__file__).parent / "assets"


@dataclass
class Plot:
    """A plot in the page."""

    name: str
    """Name of its PNG file, without the ending."""
    title: str
    caption: str
    svg: str
    narrow_svg: str = ""
    """The plot for a phone, where it takes the whole width of the page."""


@dataclass
class Page:
    """The content that the template shows; fields that are empty are left out."""

    title: str
    kind: str
    """The subject of the page in a word or two: "sweep", "runs", "cache"."""
    result: str
    """One sentence."""
    caution: str = ""
    figures: Sequence[tuple[str, str]] = ()
    """Key numbers: (number, what it is)."""
    scores: Table | None = None
    controls: Table | None = None
    baselines: Table | None = None
    runs: Table | None = None
    plots: Mapping[str, Sequence[Plot]] = field(default_factory=dict)
    """Section -> its plots."""
    videos: Mapping[str, Sequence[DrawnVideo]] = field(default_factory=dict)
    """Point -> clips with its answers drawn in."""
    no_videos: str = ""
    found: Sequence[Film] = ()
    """What words have found, or were answered."""
    no_found: str = ""
    films: Sequence[Film] = ()
    no_films: str = ""
    cache: Mapping[str, str] = field(default_factory=dict)
    """Facts of the cache, in words."""
    no_cache: str = ""
    coverage: Table | None = None
    failures: Table | None = None
    commands: Sequence[str] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tables(self) -> list[Table]:
        """The tables that the page has, in order."""
        named = self.scores, self.controls, self.baselines, self.runs, self.coverage, self.failures
        return [table for table in named if table]


def render_page(page: Page) -> str:
    """The HTML of a page, with style, script, plots and videos inside."""
    script = (HERE / "page.js").read_text(encoding="utf-8")
    return page_template(HERE / "page.html").render(
        page=page, script=Markup(script), trusted=Markup
    )


def page_template(file: Path) -> Template:
    """A template whose pages have the style of all pages and escape what they are given."""
    environment = Environment(
        loader=FileSystemLoader(file.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "video": _video,
        "tile": _tile,
        "json": lambda value: json.dumps(value, indent=1),
    }
    environment.globals["style"] = Markup((HERE / "page.css").read_text(encoding="utf-8"))
    return environment.get_template(file.name)


def _video(video: DrawnVideo) -> str:
    return _data("video/mp4", video.path.read_bytes())


def _tile(pixels_HWC: np.ndarray, is_grid: bool) -> str:
    """PNG of a grid of patches, of which every pixel counts; JPEG of a frame."""
    file, kind = io.BytesIO(), "png" if is_grid else "jpeg"
    Image.fromarray(pixels_HWC).save(file, kind, quality=82, optimize=True)
    return _data(f"image/{kind}", file.getvalue())


def _data(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
