"""Released weights of RVM: parity with a reference in NumPy, and files that are refused in one line."""

from __future__ import annotations

import copy
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import rvm

from pipeline.config import plugins
from pipeline.errors import BadInput
from pipeline.models.encoders.contract import EncoderPlugin
from pipeline.models.rvm_weights import encoder_sizes, encoder_weights

CPU = torch.device("cpu")
SIZE_PX = 256


@pytest.fixture(scope="module")
def arrays() -> rvm.Arrays:
    return rvm.random_weights()


@pytest.fixture(scope="module")
def released(arrays: rvm.Arrays, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rvm.write(tmp_path_factory.mktemp("rvm") / "released.npz", arrays)


def make(path: Path, size_px: int = SIZE_PX, **table: Any) -> EncoderPlugin:
    table = {"weights": str(path), "layers": [0, 1, 2]} | table
    settings = plugins.settings("encoder", "rvm", table, "[encoder] rvm")
    encoder: EncoderPlugin = plugins.load("encoder", "rvm")(settings, size_px, CPU)
    return encoder


def frames(count: int, size_px: int = SIZE_PX) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 3, size_px, size_px), dtype=np.uint8)


@pytest.mark.parametrize("size_px", [SIZE_PX, 112, 320])
def test_tokens_of_every_layer_are_those_of_the_reference(arrays, released, size_px):
    """At 112 and 320 px the position table is made smaller and larger."""
    pixels = frames(2, size_px)
    tokens = make(released, size_px)(torch.from_numpy(pixels))
    for frame, frame_CHW in enumerate(pixels):
        wanted = rvm.encoder(arrays, frame_CHW)
        for layer, patches_NPD in tokens.patches_NPD.items():
            np.testing.assert_allclose(patches_NPD[frame], wanted[layer][1:], atol=1e-5, rtol=0)
        np.testing.assert_allclose(tokens.special_NSD[frame], wanted[-1][:1], atol=1e-5, rtol=0)


def test_special_tokens_are_those_of_the_last_recorded_layer(arrays, released):
    pixels = frames(1)
    tokens = make(released, layers=[0])(torch.from_numpy(pixels))
    wanted = rvm.encoder(arrays, pixels[0])[0]
    np.testing.assert_allclose(tokens.special_NSD[0], wanted[:1], atol=1e-5, rtol=0)
    assert list(tokens.patches_NPD) == [0]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_other_precisions_stay_close(released, precision):
    pixels = torch.from_numpy(frames(1))
    exact, rough = make(released)(pixels), make(released, precision=precision)(pixels)
    assert rough.special_NSD.dtype == getattr(torch, precision)
    assert (exact.patches_NPD[2] - rough.patches_NPD[2].float()).norm() < (
        0.02 * exact.patches_NPD[2].norm()
    )


def test_other_layouts_of_the_same_weights_give_the_same_tokens(arrays, released, tmp_path):
    """A convolution over an image, CLS with one axis less, Fortran's order, other floats, deflated; no core and no decoder."""
    changed = {
        name: np.asfortranarray(array.astype(np.float64))
        for name, array in arrays.items()
        if name.startswith(("cls_token", "tokenizer", "encoder"))
    }
    kernel = f"{rvm.CONV}/kernel"
    changed |= {kernel: arrays[kernel][0], "cls_token": arrays["cls_token"][0]}
    np.savez_compressed(tmp_path / "other.npz", **changed)
    pixels = torch.from_numpy(frames(1))
    one, other = make(released), make(tmp_path / "other.npz")
    assert torch.equal(one(pixels).patches_NPD[2], other(pixels).patches_NPD[2])
    assert one.identity != other.identity  # which is the digest of the file


def test_the_identity_is_the_digest_of_the_file_wherever_it_lies(released, tmp_path):
    (tmp_path / "moved.npz").write_bytes(released.read_bytes())
    assert make(released).identity == make(tmp_path / "moved.npz").identity


# Files that are refused


def _without(arrays: rvm.Arrays, start: str) -> rvm.Arrays:
    return {name: array for name, array in arrays.items() if not name.startswith(start)}


def _raw(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def _npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode() + b"\n"
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    return b"\x93NUMPY" + version + length + text + data


def _header(shape: str, descr: str = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"


def _damaged_number(arrays: rvm.Arrays, value: float) -> rvm.Arrays:
    damaged = arrays["encoder/layers_1/mlp/dense_in/bias"].astype(np.float64)
    damaged[3] = value
    return arrays | {"encoder/layers_1/mlp/dense_in/bias": damaged}


QUERY = "encoder/layers_0/attention/query/kernel"
WRONG: dict[str, tuple[Callable[[rvm.Arrays], rvm.Arrays], str]] = {
    "missing": (lambda a: _without(a, "encoder/layers_1/mlp/"), "lack 4 of the 53 arrays"),
    "no_encoder": (lambda a: _without(a, "encoder/"), "lack the array encoder/layers_0/attention"),
    "gap": (lambda a: _without(a, "encoder/layers_1/"), "the first is encoder/layers_1/"),
    "unknown": (lambda a: a | {"encoder/layers_0/gamma": np.ones(3)}, "is encoder/layers_0/gamma"),
    "other_model": (lambda a: a | {"head/kernel": np.ones(3)}, "1 array that RVM does not have"),
    "shape": (
        lambda a: a | {"encoder/LayerNorm_0/scale": np.ones(25)},
        "encoder/LayerNorm_0/scale has shape (25,), wanted (24,)",
    ),
    "grey": (
        lambda a: a | {f"{rvm.CONV}/kernel": np.ones((1, 16, 16, 1, 24))},
        "wanted (16, 16, 3, 24)",
    ),
    "oblong": (
        lambda a: a | {f"{rvm.CONV}/kernel": np.ones((1, 16, 8, 3, 24))},
        "wanted (16, 16, 3, 24)",
    ),
    "axes": (lambda a: a | {QUERY: np.ones((24, 24))}, "has shape (24, 24), wanted 3 axes"),
    "heads": (lambda a: a | {QUERY: np.ones((24, 3, 7))}, "3 heads of 7 channels"),
    "empty": (lambda a: a | {"cls_token": np.ones((0, 24))}, "cls_token holds no numbers"),
    "nan": (lambda a: _damaged_number(a, np.nan), "1 of 40 numbers of array encoder/layers_1"),
    "too_large": (lambda a: _damaged_number(a, 1e300), "are not finite in float32"),
    "integers": (lambda a: a | {"cls_token": np.ones((1, 24), int)}, "of type int64"),
    "objects": (lambda a: a | {"cls_token": np.array([{}])}, "pickled objects, which are not read"),
}


def refusal(path: Path, size_px: int = SIZE_PX) -> str:
    with pytest.raises(BadInput) as caught:
        make(path, size_px)
    text = caught.value.with_hint
    assert str(path) in text and "\n" not in text and len(text) < 600
    return text


@pytest.mark.parametrize("name", WRONG)
def test_weights_that_are_not_those_of_rvm_are_refused(arrays, tmp_path, name):
    change, said = WRONG[name]
    np.savez(tmp_path / "wrong.npz", **change(arrays))
    assert said in refusal(tmp_path / "wrong.npz")


def test_files_that_are_no_archives_are_refused(released, tmp_path):
    data, path = released.read_bytes(), tmp_path / "x.npz"
    assert "cannot be read: No such file" in refusal(path)
    assert "cannot be read: it is a folder" in refusal(tmp_path)
    for content in (
        b"",
        b"no archive",
        data[: len(data) // 2],
        np.random.default_rng(0).bytes(9999),
    ):
        path.write_bytes(content)
        assert "is no .npz archive of weights" in refusal(path)
    np.save(tmp_path / "one.npy", np.ones(3))
    assert "is no .npz archive of weights" in refusal(tmp_path / "one.npy")


def test_a_changed_byte_is_noticed(released, tmp_path):
    data, path = bytearray(released.read_bytes()), tmp_path / "x.npz"
    with zipfile.ZipFile(released) as archive:
        info = archive.getinfo("encoder/layers_1/attention/query/kernel.npy")
    data[info.header_offset + info.file_size] ^= 1
    path.write_bytes(data)
    assert "Bad CRC-32" in refusal(path)


HOSTILE: dict[str, tuple[dict[str, bytes], str]] = {
    "no_array": ({"readme.txt": b"x"}, "its entry readme.txt is no array"),
    "long_name": ({"a" * 5000: b"x"}, "is no array, or is there twice"),
    "no_header": ({"cls_token.npy": b"x"}, "is not in NumPy's format"),
    "huge_header": (
        {"x.npy": _npy(_header("(1,)"), version=b"\x02\x00")},
        "is not in NumPy's format, version 1",
    ),
    "huge": ({"x.npy": _npy(_header("(1000000, 1000000)"), b"1234")}, "as long as its shape"),
    "negative": ({"x.npy": _npy(_header("(-1, -1)"), b"1234")}, "holds no numbers"),
    "structured": ({"x.npy": _npy(_header("(1,)", "[('a', '<f4')]"), b"1234")}, "of type"),
    "code": ({"x.npy": _npy("__import__('os').abort()")}, "x.npz is no .npz archive"),
    "nested": ({"x.npy": _npy("(" * 9000)}, "x.npz is no .npz archive"),
    "no_text": ({"x.npy": _npy("\0\xff{")}, "x.npz is no .npz archive"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_archives_made_to_do_harm_are_refused(tmp_path, name):
    entries, said = HOSTILE[name]
    _raw(tmp_path / "x.npz", entries)
    assert said in refusal(tmp_path / "x.npz")


def test_an_archive_that_would_unpack_to_much_more_is_refused_unread(tmp_path):
    """Deflated zeros, also where a hole makes the file long; and one entry that is listed many times."""
    path, zeros = tmp_path / "x.npz", _npy(_header(f"({2**22},)"), bytes(2**24))
    _raw(path, {"x.npy": zeros}, zipfile.ZIP_DEFLATED)
    assert "unpack to more than 8 times" in refusal(path)
    data = path.read_bytes()
    with path.open("wb") as file:
        file.seek(2**33)
        file.write(data)
    assert "unpack to more than 8 times" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.npy", zeros[: 2**20])
        for number in range(1, 40):
            info = copy.copy(archive.filelist[0])
            info.filename = f"{number}.npy"
            archive.filelist.append(info)
            archive.NameToInfo[info.filename] = info
    assert "is no .npz archive of weights" in refusal(path)


def test_damaged_bytes_are_refused_or_change_nothing_that_is_read(tmp_path):
    small = rvm.random_weights(
        4, layers=1, heads=1, hidden=3, patch_px=1, core_layers=1, core_heads=1, core_hidden=3
    )
    data, path = rvm.write(tmp_path / "whole.npz", small).read_bytes(), tmp_path / "x.npz"
    wanted = encoder_weights(tmp_path / "whole.npz", ("norm.weight",))["norm.weight"]
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        for place in generator.integers(len(data), size=generator.integers(1, 6)):
            damaged[place] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            encoder_sizes(path)
            found = encoder_weights(path, ("norm.weight",))["norm.weight"]
        except BadInput as error:
            refused += 1
            assert "\n" not in error.message
        else:
            assert torch.equal(found, wanted)
    assert refused > 75


def test_a_directory_that_is_too_long_is_not_read(tmp_path):
    """The same bytes of an archive, listed over and over; and an end that claims any length."""
    path, buffer = tmp_path / "x.npz", io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for entry in range(40_000):
            archive.writestr(f"{entry:060d}.npy", b"")
    path.write_bytes(buffer.getvalue())
    assert "its directory is too long" in refusal(path)


def test_sizes_and_layers_that_do_not_fit(released):
    assert "a whole number of this encoder's patches of 16 px" in _unfit(released, 250)
    assert "layer 3 is not there: this encoder has 3 blocks" in _unfit(released, 256, layers=[3])


def _unfit(path: Path, size_px: int, **table: Any) -> str:
    with pytest.raises(BadInput) as caught:
        make(path, size_px, **table)
    return caught.value.message
