"""A targets.h5 of a stranger: it reads no other file, and what it claims is compared with what it holds."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.views import Wants

from pipeline.datasets.manifest.manifest import Manifest
from pipeline.datasets.manifest.targets import Targets
from pipeline.datasets.manifest.targets_file import target_group, write_targets
from pipeline.errors import BadInput

BOXES = np.zeros((2, 5, 4), np.float32)
SECRET = b"\x00\x00\x80?root:x:0:0:root"


@pytest.fixture
def secret(tmp_path) -> Path:
    """A file of the user."""
    (tmp_path / "secret").write_bytes(SECRET * 100)
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.ones((2, 5, 4), np.float32)
    return tmp_path / "secret"


def manifest_of(built: Manifest, folder: Path, change) -> Manifest:
    """A manifest whose first clip has boxes, in a file that `change` has had its way with and that fits its checksum."""
    folder.mkdir(exist_ok=True)
    path = folder / "targets.h5"
    clip = built.clips[0]
    write_targets(path, iter([(clip, {"boxes": BOXES, "boxes_time_s": np.arange(5.0)})]))
    with h5py.File(path, "r+") as file:
        change(file[target_group(clip.clip_id)])
    data = path.read_bytes()
    facts = {"targets_sha256": hashlib.sha256(data).hexdigest(), "targets_bytes": len(data)}
    return replace(built, folder=folder, origin=built.origin.model_copy(update=facts))


def remade(**settings):
    """Boxes as another kind of array."""

    def change(group: h5py.Group) -> None:
        del group["boxes"]
        group.create_dataset("boxes", **settings)

    return change


def linked(link):
    def change(group: h5py.Group) -> None:
        del group["boxes"]
        group["boxes"] = link

    return change


def virtual(group: h5py.Group) -> None:
    del group["boxes"]
    layout = h5py.VirtualLayout((2, 5, 4), "f4")
    layout[:] = h5py.VirtualSource("../secret.h5", "x", (2, 5, 4))
    group.create_virtual_dataset("boxes", layout)


def own_group(group: h5py.Group) -> None:
    del group["boxes"]
    group["boxes"] = group


def many(group: h5py.Group) -> None:
    for number in range(100):
        group[f"a{number}"] = 1.0


def unknown_filter(group: h5py.Group) -> None:
    del group["boxes"]
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((2, 5, 4))
    plist.set_filter(h5py.h5z.FILTER_SZIP + 300, h5py.h5z.FLAG_OPTIONAL, (1,))
    space = h5py.h5s.create_simple((2, 5, 4))
    h5py.h5d.create(group.id, b"boxes", h5py.h5t.NATIVE_FLOAT, space, plist)


CHANGES = {
    "external storage": remade(
        shape=(2, 5, 4), dtype="f4", external=[("../secret", 0, h5py.h5f.UNLIMITED)]
    ),
    "external link": linked(h5py.ExternalLink("../secret.h5", "/x")),
    "soft link": linked(h5py.SoftLink("boxes_time_s")),
    "virtual": virtual,
    "own group": own_group,
    "huge": remade(shape=(10**6, 10**6, 4), dtype="f4", chunks=(1, 64, 4)),
    "huge and packed": remade(
        shape=(10**6, 10**6, 4), dtype="f4", chunks=(1, 64, 4), compression="gzip"
    ),
    "bytes": remade(data=np.full((2, 5, 4), b"abc", "S3")),
    "text": remade(data=np.array(["a"], object), dtype=h5py.string_dtype()),
    "references": remade(shape=(2, 5, 4), dtype=h5py.ref_dtype),
    "records": remade(data=np.zeros((2, 5, 4), [("a", "f4")])),
    "no shape": remade(data=h5py.Empty("f4")),
    "other axes": remade(data=np.zeros((2, 5, 3), "f4")),
    "one axis": remade(data=np.zeros(5, "f4")),
    "other frames": remade(data=np.zeros((2, 6, 4), "f4")),
    "lzf": remade(data=BOXES, chunks=(2, 5, 4), compression="lzf"),
    "unknown filter": unknown_filter,
    "many": many,
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_not_plain_numbers_of_the_file_is_refused(built, tmp_path, secret, name):
    manifest = manifest_of(built, tmp_path / "data", CHANGES[name])
    clip = built.clips[0]
    targets = Targets(manifest, Wants("boxes"))
    with pytest.raises(BadInput, match=r"targets\.h5: clip '") as error:
        targets.window(clip, np.arange(3.0), np.tile(np.eye(2, 3), (3, 1, 1)), 1.0, None)
    assert "x:0:0" not in str(error.value)
    with pytest.raises(BadInput, match=r"targets\.h5: clip '"):
        manifest.targets(clip.clip_id)


@pytest.mark.parametrize("kind", ["soft", "external", "array", "elsewhere"])
def test_a_group_that_is_not_one_of_the_file(built, tmp_path, secret, kind):
    def change(group: h5py.Group) -> None:
        file, name = group.file, group.name
        del file[name]
        file[name] = {
            "soft": h5py.SoftLink("/"),
            "external": h5py.ExternalLink("../secret.h5", "/"),
            "array": np.zeros(3),
            "elsewhere": h5py.SoftLink("/nowhere"),
        }[kind]

    manifest = manifest_of(built, tmp_path / "data", change)
    with pytest.raises(BadInput, match="is no group of at most 64 arrays in this file"):
        manifest.targets(built.clips[0].clip_id)


def test_what_is_written_is_read(built, tmp_path):
    manifest = manifest_of(built, tmp_path / "data", lambda group: None)
    arrays = manifest.targets(built.clips[0].clip_id)
    np.testing.assert_array_equal(arrays["boxes"], BOXES)
    assert manifest.targets(built.clips[1].clip_id) == {}
