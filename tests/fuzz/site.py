"""A cache with all kinds of files, a run and a sweep, of which every attempt gets a copy; and what must hold after a command."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from support.commands import SPEC, Result, call, digest, fine
from support.forgery import edit
from support.paths import GOLDEN

from fuzz.damage import RAW, change, forge, other_thing
from pipeline.cache.receipts import header_digest
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.datasets.manifest.targets_file import write_targets

OLDER = (1, 2)
"""Older formats, whose caches have fewer checksums."""
WAIT_S = 60
"""Seconds after which a command counts as hanging."""
RECIPE = """
[task]
name = "{task}"
readout_width = 8
heads = 2
[temporal]
name = "identity"
[windows]
frames = 3
fps = 10
[training]
steps = 1
batch_size = 2
warmup_steps = 0
"""
SWEEP = """
[axes]
"temporal.name" = ["identity", "min_gru"]
"""


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


class Site:
    """Made once; `copied` for every attempt."""

    def __init__(self, folder: Path, videos: Path) -> None:
        self.folder, self.videos = folder, videos
        self.spec = folder / "fuzz.toml"
        self.spec.write_text(SPEC + '[codec]\nname = "pca"\ncomponents = 4\n')
        for task in ("boxes", "classify"):
            (folder / f"{task}.toml").write_text(RECIPE.format(task=task))
        self.data = folder / "data"
        fine("manifest", "folder", videos, "--out", self.data, "--set", "val_fraction=0.3")
        self._add_boxes()
        fine("extract", self.spec, self.data, "--out", folder / "caches")
        (cache,) = (folder / "caches").iterdir()
        (cache / "leases").mkdir(exist_ok=True)
        (cache / "leases/00099.json").write_text(
            json.dumps({"worker": "w", "machine": "m", "pid": 1, "started": 1, "beat": 0})
        )
        self.cache = cache.rename(folder / cache.name)
        self.caches = (cache.name, *(f"format_{number}" for number in OLDER))
        for number, name in zip(OLDER, self.caches[1:], strict=True):
            with zipfile.ZipFile(GOLDEN / f"cache_of_{name}.zip") as packed:
                packed.extractall(folder / "older" / str(number))
            (older,) = (folder / "older" / str(number)).iterdir()
            older.rename(folder / name)
        self.given = (*self.caches, "boxes", "classify")
        for task in ("boxes", "classify"):
            fine("train", folder / f"{task}.toml", self.cache, "--out", folder / task)
        fine("evaluate", folder / "classify")
        self.before = digest(folder)

    def _add_boxes(self) -> None:
        """Truth for every clip, since data sets that bring some are larger."""
        clips = Manifest.load(self.data).clips
        file = self.data / "targets.h5"
        arrays = {
            "boxes": np.tile(np.array([0.1, 0.2, 0.5, 0.6], np.float32), (2, 40, 1)),
            "boxes_time_s": np.arange(40) / 10,
        }
        write_targets(file, ((clip, arrays) for clip in clips))
        facts = {"targets_sha256": sha256(file), "targets_bytes": file.stat().st_size}
        edit(self.data / "dataset.json", lambda table: table.update(facts))

    def copied(self, folder: Path) -> Attempt:
        shutil.rmtree(folder, ignore_errors=True)
        for name in self.given:
            shutil.copytree(self.folder / name, folder / "given" / name)
        (folder / "home/sub").mkdir(parents=True)
        (folder / "home/thesis.tex").write_text("the secret of the thesis")
        (folder / "home/sub/00000.json").write_text("the secret of the thesis")
        return Attempt(self, folder)

    @property
    def targets(self) -> list[list[str]]:
        """All files and folders of a cache and two runs, relative to what was given; those of one kind together."""
        kinds: dict[str, list[str]] = {}
        for name in self.given:
            for path in sorted((self.folder / name).rglob("*")):
                target = path.relative_to(self.folder).as_posix()
                kind = "cache/" * (name in self.caches) + target.partition("/")[2]
                kinds.setdefault(re.sub(r"[0-9/]+", "#", kind), []).append(target)
        return list(kinds.values())


class Attempt:
    """Files from a stranger, one of which is damaged, beside a folder of the user."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site, self.folder = site, folder
        self.given, self.home = folder / "given", folder / "home"

    def damage(self, target: str, seed: int, *, fits: bool) -> None:
        """Damages a file or folder. `fits`: checksums are made to fit, as far as that can be done."""
        random, file = Random(seed), self.given / target
        if file.is_dir() or random.random() < 0.15:
            other_thing(file, self.home, random)
            return
        is_text = file.suffix in (".json", ".jsonl")
        change(file, forge if is_text and random.random() < 0.7 else random.choice(RAW), random)
        if fits:
            self._fit()

    def _fit(self) -> None:
        """Makes every checksum fit again, from the inside out."""
        for name in self.site.caches:
            self._fit_cache(self.given / name)
        for name in ("boxes", "classify"):
            with suppress(Exception):
                for which in ("last", "best"):
                    file = self.given / name / f"{which}.json"
                    weights = self.given / name / json.loads(file.read_text())["file"]
                    new = {"sha256": sha256(weights)}
                    edit(file, lambda table, new=new: table.update(new))
            with suppress(Exception):
                for file in (self.given / name).glob("*.json"):
                    edit(file, lambda table: None)

    def _fit_cache(self, cache: Path) -> None:
        with suppress(Exception):
            files = {"manifest_sha256": "manifest.jsonl", "targets_sha256": "targets.h5"}
            files["videos_sha256"] = "videos.jsonl"
            table = {key: sha256(cache / "manifest" / name) for key, name in files.items()}
            table["targets_bytes"] = (cache / "manifest/targets.h5").stat().st_size
            edit(cache / "manifest/dataset.json", lambda origin: origin.update(table))
        with suppress(Exception):
            listed = {
                file.name: [file.stat().st_size, sha256(file)]
                for file in (cache / "manifest").iterdir()
            }
            origin = json.loads((cache / "manifest/dataset.json").read_text())
            both = f"{origin['manifest_sha256']}{origin['targets_sha256']}"
            facts = {
                "manifest_files": listed,
                "manifest": hashlib.sha256(both.encode()).hexdigest(),
                "codec_sha256": sha256(cache / "codec.safetensors"),
            }
            edit(
                cache / "cache.json",
                lambda header: header.update({key: facts[key] for key in facts if key in header}),
            )
        for receipt in sorted((cache / "receipts").glob("*.json")):
            with suppress(Exception):
                store = cache / "stores" / f"{receipt.stem}.zarr"
                header = header_digest((cache / "cache.json").read_bytes())

                def fit(table: dict[str, Any], store: Path = store, header: str = header) -> None:
                    table |= {"header_sha256": header} if "header_sha256" in table else {}
                    for name in table["files"]:
                        table["files"][name] = [
                            (store / name).stat().st_size, sha256(store / name)
                        ]  # fmt: skip

                edit(receipt, fit)

    def commands(self, target: str, number: int) -> Iterator[Sequence[object]]:
        """The commands that read what was damaged; of the slower ones, one."""
        root, site = target.partition("/")[0], self.site
        path = self.given / root
        if root in site.caches:
            yield "status", path
            yield "verify", path
            slower = [
                ("train", site.folder / "boxes.toml", path, "--out", self.folder / "new"),
                ("train", site.folder / "classify.toml", path, "--out", self.folder / "new"),
                ("evaluate", self.given / "boxes", "--cache", path),
                ("verify", path, "--repair", "--root", site.videos),
                ("diff", site.spec, path),
                ("extract", site.spec, site.data, "--out", self.given),
                ("evaluate", self.given / "classify", "--cache", path),
                ("derive", path, "--out", self.folder / "derived", "--set", "codec.name=int8"),
                ("report", path, "--out", self.folder / "page"),
            ]
        else:
            slower = [
                ("evaluate", path, "--cache", site.cache),
                ("evaluate", path, "--checkpoint", "best"),
                ("train", site.folder / f"{root}.toml", site.cache, "--out", path),
                ("stream", path, site.videos / "a/v1.mp4"),
                ("report", path, "--out", self.folder / "page"),
            ]
        yield slower[number % len(slower)]

    def run(self, target: str, number: int) -> list[Result]:
        """Runs the commands. Raises AssertionError where one of them does not keep its word."""
        results = []
        before = digest(self.home)
        for command in self.commands(target, number):
            with interrupted_after(WAIT_S):
                result = call(*command)
            judge(command, result)
            assert digest(self.home) == before, f"{command} changed the user's files"
            results.append(result)
        return results


def judge(command: Sequence[object], result: Result) -> None:
    """One line where it is refused, no traceback, and nothing of the user's files."""
    said = result.out + result.err
    assert result.code in (0, 1, 2, 3), (command, result)
    assert "Traceback" not in said and "secret of the thesis" not in said, (command, result)
    assert "\x1b" not in said, (command, result)
    if result.code in (1, 2):
        errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and result.err.endswith("\n"), (command, result)


@contextmanager
def interrupted_after(seconds: int) -> Iterator[None]:
    def wake(*_: object) -> None:
        raise AssertionError(f"nothing came of it in {seconds} s")

    before = signal.signal(signal.SIGALRM, wake)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attempt(site: Site, folder: Path, seed: int) -> list[Result]:
    """One damage, drawn by `seed`, and the commands that read what was damaged. Raises AssertionError where one of them does not
    keep its word, and whatever it raises."""
    random = Random(seed)
    target, fits = random.choice(random.choice(site.targets)), random.random() < 0.7
    given = site.copied(folder)
    try:
        given.damage(target, random.randrange(2**32), fits=fits)
    except (ValueError, RecursionError):  # what is damaged is no JSON that can be written
        return []
    return given.run(target, random.randrange(1000))
