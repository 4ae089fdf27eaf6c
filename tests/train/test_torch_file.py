"""Files of `torch.save` are read as torch reads them, and nothing in them is ever executed."""

from __future__ import annotations

import argparse
import collections
import copyreg
import datetime
import decimal
import functools
import io
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config.pickles import OPAQUE
from pipeline.errors import BadInput
from pipeline.train.weights.import_checkpoint import read_weights
from pipeline.train.weights.pickled import read_torch_pickle
from pipeline.train.weights.torch_file import TorchFile


class Config(dict):
    """As those of libraries are: a dictionary with more to it."""

    def __init__(self, *args: Any, **keys: Any) -> None:
        super().__init__(*args, **keys)
        self.__dict__["parent"] = self


HARMLESS = {
    "Namespace": argparse.Namespace(lr=1e-3, path=Path("/data")),
    "path": Path("a/b"),
    "numpy scalar": np.float64(3.5),
    "numpy array": np.arange(5.0),
    "numpy dtype": np.dtype("float32"),
    "configuration": Config(a=Config(b=[1, {2: 3}])),
    "sets": [{1, 2}, frozenset({"a"}), set()],
    "collections": [collections.deque([1]), collections.defaultdict(list, a=[1])],
    "partial": functools.partial(int, base=2),
    "numbers": [decimal.Decimal("1.5"), 10**400, -(2**70), 1j, True, None, b"bytes", "é"],
    "time": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    "torch": [torch.float16, torch.device("cpu"), torch.Size([2]), torch.nn.GELU()],
    "class": argparse.Namespace,
    "optimizer": {"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(4.0)}}},
}


def state() -> dict[str, torch.Tensor]:
    """Tensors of every format, views, and two that share their numbers."""
    base = torch.arange(24, dtype=torch.float32).view(4, 6)
    return {
        "plain": base,
        "transposed": base.T,
        "column": base[:, 2],
        "shared": base[1:],
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "half": torch.randn(3, 2).half(),
        "bfloat16": torch.randn(5).bfloat16(),
        "double": torch.randn(2, dtype=torch.float64),
        "count": torch.tensor(7),
        "flag": torch.tensor([True, False]),
        "empty": torch.empty(0, 4),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_those_that_were_saved(zipped: bool, protocol: int, tmp_path: Path) -> None:
    saved = state()
    file = tmp_path / "a.ckpt"
    named = collections.OrderedDict((f"model.{name}", tensor) for name, tensor in saved.items())
    torch.save(
        {"epoch": 1, "state_dict": named, "hyper_parameters": HARMLESS},
        file,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped,
    )
    read = read_weights(file)
    assert read.keys() == saved.keys()
    for name, tensor in saved.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor), name


@pytest.mark.parametrize("kind", HARMLESS)
@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_what_is_no_tensor_is_passed_over(kind: str, protocol: int) -> None:
    value = {"before": 1, "it": HARMLESS[kind], "z": 2}
    read, _ = read_torch_pickle(io.BytesIO(pickle.dumps(value, protocol)))
    assert read["before"] == 1 and read["z"] == 2


class Runs:
    """Its pickle calls `function` with `arguments`, in the way that `form` names."""

    def __init__(self, function: Any, arguments: tuple[Any, ...], form: str = "reduce") -> None:
        self.function, self.arguments, self.form = function, arguments, form

    def __reduce__(self) -> Any:
        if self.form == "reduce":
            return self.function, self.arguments
        if self.form == "state":
            return list, (), None, None, iter([("a", Runs(self.function, self.arguments))])
        return copyreg.__newobj__, (self.function, *self.arguments)


def hostile(mark: Path) -> dict[str, bytes]:
    """Pickles that create the file `mark` where they are run."""
    shell = f"touch {mark}"
    python = f"open({str(mark)!r}, 'w')"
    text = shell.encode()
    pickles = {
        "INST": b"(S'" + text + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'" + text + b"'\no.",
        "GLOBAL": b"cos\nsystem\n(S'" + text + b"'\ntR.",
        "posix": b"cposix\nsystem\n(S'" + text + b"'\ntR.",
        "getattr": b"cbuiltins\ngetattr\n(cos\n__name__\nS'system'\ntR(S'" + text + b"'\ntR.",
        "through torch": b"ctorch.serialization\nos.system\n(S'" + text + b"'\ntR.",
        "as the rebuilding of a type": (
            b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\ncos\nsystem\n(S'"
            + text
            + b"'\ntNtR."
        ),
        "build": b"cos\nsystem\n}S'__setstate__'\ncos\nsystem\nsbS'" + text + b"'\nb.",
        "dictionary that is filled": (
            b"ccollections\nOrderedDict\n(tR}S'__class__'\ncos\nsystem\nsb."
        ),
        "persistent": b"(S'storage'\ncos\nsystem\nS'0'\nS'cpu'\nI1\ntQ.",
        "text persistent": b"Pos.system\n.",
        "extension": b"\x82\x01.",
    }
    for protocol in (2, 4, 5):
        for name, runs in {
            "system": Runs(os.system, (shell,)),
            "eval": Runs(eval, (python,)),
            "exec": Runs(exec, (python,)),
            "import": Runs(__import__, ("antigravity",)),
            "newobj": Runs(os.system, (shell,), "newobj"),
            "reconstructor": Runs(copyreg._reconstructor, (Config, dict, {"a": 1})),
            "state": Runs(os.system, (shell,), "state"),
            "partial": Runs(functools.partial(os.system, shell), ()),
        }.items():
            try:
                pickles[f"{name} {protocol}"] = pickle.dumps(runs, protocol)
            except pickle.PicklingError:  # this form does not exist for it
                continue
    return pickles


def archive(file: Path, pickled: bytes, storages: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(file, "w") as written:
        written.writestr("archive/data.pkl", pickled)
        for key, data in (storages or {}).items():
            written.writestr(f"archive/data/{key}", data)
    return file


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    """Bare, as a hyper-parameter, as a weight, as a key, and inside of nested state dicts."""
    mark = tmp_path / "executed"
    for name, pickled in hostile(mark).items():
        body = pickled.removeprefix(pickled[:2] if pickled[:1] == b"\x80" else b"").removesuffix(
            b"."
        )
        inside = [
            pickled,
            b"\x80\x02}(X\n\0\0\0state_dict}X\1\0\0\0w" + body + b"sX\1\0\0\0h" + body + b"u.",
            b"\x80\x02}X\n\0\0\0state_dict}X\n\0\0\0state_dict}X\1\0\0\0w" + body + b"sss.",
            b"\x80\x02}X\n\0\0\0state_dict}" + body + b"K\1ss.",
        ]
        for number, content in enumerate(inside):
            with pytest.raises(BadInput) as error:
                read_weights(archive(tmp_path / "a.ckpt", content))
            assert "\n" not in error.value.message, (name, number)
            (tmp_path / "legacy.ckpt").write_bytes(content)
            with pytest.raises(BadInput):
                read_weights(tmp_path / "legacy.ckpt")
        assert not mark.exists(), name


def test_a_sound_state_dict_beside_hostile_parts_is_read(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    weights = {"model.w": torch.arange(3.0)}
    for form in ("reduce", "state"):
        evil = Runs(os.system, (f"touch {mark}",), form)
        torch.save({"hyper_parameters": evil, "state_dict": weights}, tmp_path / "a.ckpt")
        assert torch.equal(read_weights(tmp_path / "a.ckpt")["w"], weights["model.w"])
    with pytest.raises(BadInput, match="v in its state dict is no plain tensor"):
        torch.save({"state_dict": weights | {"v": evil}}, tmp_path / "a.ckpt")
        read_weights(tmp_path / "a.ckpt")
    assert not mark.exists()


DEEP = 30_000
BOMBS = {
    "deep lists": b"]" * DEEP + b"a" * (DEEP - 1) + b".",
    "deep tuples": b")" + b"\x85" * DEEP + b".",
    "deep tuple as a key": b"}" + b")" + b"\x85" * DEEP + b"K\1s.",
    "doubling tuples as a key": b"}" + b")q\0" + b"h\0h\0\x86q\0" * 60 + b"K\1s.",
    "doubling tuples in a set": b"(" + b")q\0" + b"h\0h\0\x86q\0" * 60 + b"\x91.",
    "long text that is not there": b"\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "long bytes that are not there": b"\x8e" + struct.pack("<Q", 2**40) + b"x.",
    "frame that is not there": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.",
    "number of a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
    "memo that is not there": b"j\xff\xff\xff\xff.",
    "memo far out": b"Nr\xff\xff\xff\xff.",
    "list that holds itself": b"]q\0h\0a.",
    "stack that is empty": b"0000.",
    "mark that is not there": b"t.",
    "no end": b"}",
    "unknown": b"\xff.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_pickle_that_blows_up_is_refused_at_once(bomb: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as error:
        read_weights(archive(tmp_path / "a.ckpt", BOMBS[bomb]))
    assert len(error.value.message) < 500


def tensor_pickle(count: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A state dict of one tensor `w`, described as is wanted, over storage 0 of float32."""

    def number(value: int) -> bytes:
        return b"I" + str(value).encode() + b"\n"

    def row(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(number(value) for value in values) + b"t"

    storage = b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\n" + number(count) + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset)
    return b"}S'w'\n" + tensor + row(size) + row(stride) + b"I00\n}tRs."


def test_a_tensor_that_its_numbers_do_not_reach_is_refused(tmp_path: Path) -> None:
    numbers = np.arange(6, dtype=np.float32).tobytes()
    file = tmp_path / "a.ckpt"
    read = read_weights(archive(file, tensor_pickle(6, 1, (2, 2), (3, 1)), {"0": numbers}))
    assert read["w"].tolist() == [[1, 2], [4, 5]]
    for wrong in (
        (6, 0, (7,), (1,)),
        (6, 3, (2, 2), (3, 1)),
        (6, 0, (2**40,), (0,)),
        (6, -1, (2,), (1,)),
        (6, 0, (2,), (-1,)),
        (6, 0, (-2,), (1,)),
        (6, 0, (2, 2), (1,)),
        (6, 0, (1,) * 40, (1,) * 40),
        (7, 0, (6,), (1,)),
        (5, 0, (5,), (1,)),
        (2**50, 0, (6,), (1,)),
        (-6, 0, (6,), (1,)),
    ):
        with pytest.raises(BadInput, match=r"w cannot be read|cannot be read as plain"):
            read_weights(archive(file, tensor_pickle(*wrong), {"0": numbers}))
    with pytest.raises(BadInput):
        read_weights(archive(file, tensor_pickle(6, 0, (6,), (1,))))


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    """An entry of a few bytes could become gigabytes."""
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as written:
        written.writestr("archive/data.pkl", b"}." + bytes(10**6))
    with pytest.raises(BadInput, match="compressed, or too large"):
        read_weights(tmp_path / "a.ckpt")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_file_is_read_or_refused(zipped: bool, tmp_path: Path) -> None:
    saved = {name: tensor for name, tensor in state().items() if name != "empty"}
    file = tmp_path / "a.ckpt"
    torch.save(
        {"hyper_parameters": HARMLESS["Namespace"], "state_dict": saved},
        file,
        _use_new_zipfile_serialization=zipped,
    )
    sound, chance = file.read_bytes(), random.Random(0)
    for _ in range(150):
        damaged = bytearray(sound)
        for _ in range(chance.choice((1, 3, 20))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        if chance.random() < 0.2:
            del damaged[chance.randrange(len(damaged)) :]
        file.write_bytes(damaged)
        try:
            read = read_weights(file)
        except BadInput as error:
            assert "\n" not in error.message
        else:
            assert all(isinstance(tensor, torch.Tensor) for tensor in read.values())


def test_a_file_is_closed_and_what_is_not_read_is_one_thing(tmp_path: Path) -> None:
    torch.save({"a": argparse.Namespace(b=1)}, tmp_path / "a.pt")
    with TorchFile(tmp_path / "a.pt") as opened:
        assert opened.content["a"] is OPAQUE
