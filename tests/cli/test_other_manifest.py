"""A cache whose copy of the manifest is that of other videos, or of other labels."""

from __future__ import annotations

import shutil

import pytest
from support.commands import assert_refused, call, fine


@pytest.mark.parametrize("other", ["videos", "labels"])
def test_a_manifest_of_others_in_a_cache_is_refused_in_one_line(place, cache, tmp_path, other):
    data = tmp_path / "other"
    if other == "videos":
        shutil.copytree(place.videos / "a", tmp_path / "root" / "c")
        fine("manifest", "folder", tmp_path / "root", "--out", data)
    else:
        rows = [f"{path.relative_to(place.videos)},new" for path in place.videos.glob("*/*.mp4")]
        (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
        csv = f"csv={tmp_path / 'labels.csv'}"
        fine("manifest", "folder", place.videos, "--out", data, "--set", csv)
    shutil.rmtree(cache / "manifest")
    shutil.copytree(data, cache / "manifest")
    for command in (
        ("status", cache),
        ("status", cache, "--json"),
        ("train", place.recipe, cache, "--out", tmp_path / "run"),
    ):
        assert_refused(call(*command), f"{cache}/manifest", "copy the manifest that it was")
