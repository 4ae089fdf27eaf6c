"""The laws of data sets, as far as they hold of any: see `contract`, and docs/extending.md."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.laws import BrokenLaw, Laws, NotChecked, demand
from pipeline.datasets.manifest import manifest
from pipeline.errors import BadInput

MANIFEST_FILES = ("manifest.jsonl", "dataset.json", "videos.jsonl")
"""Files of a manifest that are the same for the same data."""


class BuiltManifests:
    """Builds manifests with one data set: of the user's folder, if one is given."""

    def __init__(self, name: str, settings: Mapping[str, Any], root: Path | None) -> None:
        self.name, self.settings, self.root = name, dict(settings), root

    def build(self, root: Path | None, out: Path) -> manifest.Manifest:
        """The manifest of `root` in `out`, checked as every manifest is. Raises BadInput."""
        return manifest.build(self.name, root, out, self.settings)


DATASET_LAWS: Laws[BuiltManifests] = Laws()


@DATASET_LAWS.add("a folder in which there is nothing is refused in one line")
def _empty(built: BuiltManifests) -> None:
    with tempfile.TemporaryDirectory(prefix="stillframe-") as folder:
        root = Path(folder) / "empty"
        root.mkdir()
        try:
            built.build(root, Path(folder) / "out")
        except BadInput as error:
            demand("\n" not in error.message, f"it says in several lines: {error.message}")
        else:
            raise NotChecked("it makes its own videos")


@DATASET_LAWS.add("clips and truth of the folder make a manifest, the same one again")
def _manifest(built: BuiltManifests) -> None:
    with tempfile.TemporaryDirectory(prefix="stillframe-") as folder:
        first, again = Path(folder) / "first", Path(folder) / "again"
        if built.root is None:
            raise NotChecked("no folder of its layout was given: --data DIR")
        before = _files(built.root)
        one = built.build(built.root, first)
        demand(_files(built.root) == before, f"something was written into {built.root}")
        two = built.build(built.root, again)
        demand(one.digest == two.digest, f"its digest is {one.digest}, and then {two.digest}")
        for name in MANIFEST_FILES:
            if (first / name).read_bytes() != (again / name).read_bytes():
                raise BrokenLaw(f"{name} has other bytes the second time")


def _files(root: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(root)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
