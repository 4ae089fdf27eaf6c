"""Every damage of a cache in parts is told in one line that names its part and the next step; sound parts are not
named, and no more than one part is held."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.commands import assert_refused, call, fine
from support.material import address_spec

from pipeline.cache.cache import Cache
from pipeline.cache.layout import mark_file, receipt_name, store_name
from pipeline.cache.parts import verification
from pipeline.cache.parts.parted import PartedCache
from pipeline.cache.parts.summary import parted_status
from pipeline.cache.parts.verification import verify_parts
from pipeline.cache.verify import verify_cache
from pipeline.errors import BadInput
from pipeline.extract.execution import Execution
from pipeline.extract.in_parts import extract_parts

HERE = Execution(torch.device("cpu"))


@pytest.fixture(scope="module")
def of_other_spec(parts, tmp_path_factory) -> PartedCache:
    """The same videos through another codec. Read only."""
    spec = address_spec(codec={"name": "int8"})
    return extract_parts(spec, parts, tmp_path_factory.mktemp("other"), HERE)


@pytest.fixture
def mine(parted, tmp_path) -> PartedCache:
    """A copy to damage."""
    shutil.copytree(str(parted), tmp_path / "caches" / parted.storage.name)
    return PartedCache(tmp_path / "caches" / parted.storage.name)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def first_store(part: Cache) -> Path:
    return part.path / store_name(min(part.plan))


DAMAGES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "a shard": (
        lambda part: flip(first_store(Cache(part)) / "layer_5/c/0/0/0"),
        "layer_5/c/0/0/0: content differs from its checksum",
        "stillframe verify {part} --repair",
    ),
    "a store": (
        lambda part: shutil.rmtree(first_store(Cache(part))),
        "{part}/stores/00000.zarr: folder is missing",
        "stillframe verify {part} --repair",
    ),
    "a receipt": (
        lambda part: flip(part / receipt_name(min(Cache(part).plan))),
        "{part}/receipts/00000.json: ",
        "stillframe verify {part} --repair",
    ),
    "its manifest": (
        lambda part: flip(part / "manifest/manifest.jsonl"),
        "{part}/manifest/manifest.jsonl: content differs from its checksum",
        "copy the manifest that it was extracted from",
    ),
    "its plan": (
        lambda part: flip(part / "cache.json"),
        "{part}/cache.json is damaged",
        "its stores are not touched",
    ),
    "its plan, gone": (
        lambda part: (part / "cache.json").unlink(),
        "{part}/cache.json is missing",
        "remove {cache}/done/00001.json, and run extract again",
    ),
    "all of it, gone": (
        shutil.rmtree,
        "{part}/cache.json is missing",
        "remove {cache}/done/00001.json, and run extract again",
    ),
    "another part in its place": (
        lambda part: (shutil.rmtree(part), shutil.copytree(part.with_name("00000"), part)),
        "{part} is of another manifest than {cache}/parts.json lists",
        "put back what was there",
    ),
    "its mark": (
        lambda part: flip(part.parent / mark_file("00001")),
        "{cache}/done/00001.json ",
        "remove it, and run extract again",
    ),
    "another mark in its place": (
        lambda part: (part.parent / mark_file("00001")).write_bytes(
            (part.parent / mark_file("00000")).read_bytes()
        ),
        "{cache}/done/00001.json says ",
        "remove it, and run extract again",
    ),
    "a store of a finished part": (
        lambda part: (part / receipt_name(min(Cache(part).plan))).unlink(),
        "{cache}/done/00001.json says stores 1, the receipts of its part 0",
        "remove it, and run extract again",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_of_a_part_is_one_line_with_its_next_step(mine, damage):
    destroy, problem, next_step = DAMAGES[damage]
    cache = Path(str(mine))
    destroy(cache / "00001")
    (bad,) = verify_parts(PartedCache(cache)).bad
    names = {"part": f"{cache}/00001", "cache": str(cache)}
    assert bad.part == "00001" and problem.format(**names) in bad.problem
    assert next_step.format(**names) in bad.next_step
    assert "\n" not in bad.text


def test_a_part_of_another_spec_is_refused_by_all(mine, of_other_spec, parts, tmp_path):
    shutil.rmtree(Path(str(mine)) / "00001")
    shutil.copytree(Path(str(of_other_spec)) / "00001", Path(str(mine)) / "00001")
    (bad,) = verify_parts(mine).bad
    fingerprints = rf"{of_other_spec.part(1).fingerprint}, wanted {mine.part(0).fingerprint}"
    assert bad.part == "00001" and fingerprints in bad.problem
    mine.storage.remove(mark_file("00001"))
    with pytest.raises(BadInput, match=rf"00001 is of another spec .*{fingerprints}"):
        extract_parts(address_spec(), parts, Path(str(mine)).parent, HERE)


def test_what_is_not_extracted_yet_is_no_damage(parts, mine):
    shutil.rmtree(Path(str(mine)) / "00002")
    mine.storage.remove(mark_file("00002"))
    (Path(str(mine)) / "00002").mkdir()  # a kill before it was planned
    (Path(str(mine)) / "00001x").mkdir()
    found = verify_parts(mine)
    assert (found.begun, found.parts, found.checked, found.missing) == (3, 2, 2, 0)
    assert not found.bad and found.orphans == {"00001x": "does not belong here"}


def test_one_part_is_held_at_a_time(parted, monkeypatch):
    alive: list[weakref.ref[Cache]] = []
    counts = []

    def watched(cache):
        alive.append(weakref.ref(cache))
        counts.append(sum(each() is not None for each in alive))
        return verify_cache(cache)

    monkeypatch.setattr(verification, "verify_cache", watched)
    assert not verify_parts(parted).bad
    # The one before it may be there until the next has come.
    assert len(counts) == 3 and max(counts) <= 2


def test_the_command_names_bad_parts_and_ends_with_2(mine):
    cache = Path(str(mine))
    for number in (0, 2):
        flip(first_store(mine.part(number)) / "layer_5/c/0/0/0")
    result = call("verify", cache)
    assert_refused(
        result,
        f"{cache} is damaged in 2 parts: 00000, 00002",
        f"stillframe verify {cache}/00000 --repair",
        out=True,
    )
    assert [line[:10] for line in result.out.splitlines()] == ["part 00000", "part 00002"]
    facts = json.loads(call("verify", cache, "--json").out)
    assert facts["parts"] == {"planned": 3, "begun": 3, "checked": 3}
    assert [bad["part"] for bad in facts["problems"]] == ["00000", "00002"]
    assert all(bad["stores"] == [0] and bad["frames"] > 0 for bad in facts["problems"])
    for number in (0, 2):
        call("verify", f"{cache}/0000{number}", "--repair")
    assert fine("verify", cache, "--json").json["problems"] == []
    assert mine.finished() == [0, 1, 2]


def test_the_status_names_finished_parts_that_are_gone(mine):
    shutil.rmtree(Path(str(mine)) / "00001")
    state = parted_status(mine)
    assert (state.lost, state.parts.begun, state.parts.done) == (["00001"], 3, 3)
    assert "1 finished part gone: 00001; next: " in fine("status", mine).out
