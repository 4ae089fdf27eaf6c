"""What every scenario needs: a cache to extract, processes to extract it and to be killed, and how the result is judged."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from support.commands import SPEC
from support.material import address_video

from pipeline.cache.cache import Cache
from pipeline.cache.corruption import check_store
from pipeline.cache.layout import HEADER_FILE
from pipeline.config.cache_spec import load_spec
from pipeline.datasets.manifest import manifest
from pipeline.errors import BadInput
from pipeline.extract import extract
from pipeline.extract.worker import ExtractionJob

FRAME_MB = 2 * 9 * 8 / 1e6
"""float16 of one layer's tokens of a frame, by which the sizes of stores and shards are reckoned."""
QUEUED_BATCHES = 3
"""Batches of the next store that may be encoded while a store is being committed: two that wait and one that wants to."""
QUICK = 0.02, 60.0, 0.02
"""Seconds between signs of life, without one until a lease is void, and between two looks: more often than in earnest."""
STILL = 60.0, 600.0, 0.02
"""Without a sign of life in between, so that the n-th file operation is the same one each time."""
IMPATIENT = 0.02, 0.7, 0.02
"""Where somebody must wait until a lease is void."""
OTHER_HOST = ("unshare", "--pid", "--fork", "--mount-proc")
"""Its processes are numbered apart and cannot be seen: a lease of theirs is void only by standing still."""


class Server:
    """Forks workers, see `server.py`, and signals them: their numbers may mean nothing here."""

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        self.is_local = not prefix
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(
            [*prefix, sys.executable, str(Path(__file__).with_name("server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(root), "GOMP_SPINCOUNT": "10000"},
        )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@dataclass
class Child:
    """A process that extracts."""

    server: Server
    pid: int
    stderr: Path
    _status: int | str | None = None

    def signal(self, number: int) -> None:
        self.server.ask("signal", pid=self.pid, signal=number)

    def wait(self) -> int | str:
        """Exit code, minus the signal that killed it, or `stopped`."""
        status: int | str = self.server.ask("wait", pid=self.pid, block=True)["status"]
        return status

    def ended(self) -> int | str | None:
        """Its exit status, or None while it lives."""
        if self._status is None:
            self._status = self.server.ask("wait", pid=self.pid, block=False)["status"]
        return self._status

    def kill(self) -> bool:
        """SIGKILL, which may come too late: False. The processes that it has started must end by themselves."""
        helpers = self.helpers()
        self.signal(signal.SIGKILL)
        self._status = self.wait()
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in helpers))
        return self._status == -signal.SIGKILL

    def helpers(self) -> list[int]:
        """The processes that it has started; none are seen on another host."""
        found = []
        for task in (
            Path(f"/proc/{self.pid}/task").glob("*/children") if self.server.is_local else ()
        ):
            with suppress(OSError):  # that thread has ended
                found += [int(pid) for pid in task.read_text().split()]
        return found


@dataclass
class Tally:
    """What a scenario did, and what it cost."""

    scenario: str
    kills: int = 0
    rounds: int = 0
    encoded: Counter[int] = field(default_factory=Counter)
    """store -> frames that were encoded, in all rounds."""
    wanted: Counter[int] = field(default_factory=Counter)
    """store -> frames that had to be."""
    spare: int = 0
    """Frames that may be encoded again: of every kill, a store and what was on its way to the next."""
    identical: int = 0
    """Rounds whose cache was the undisturbed one."""
    note: str = ""

    @property
    def again(self) -> int:
        """Frames that were encoded in vain."""
        return self.encoded.total() - self.wanted.total()


class Site:
    """Videos, what their cache must be, and a folder for the caches that are disturbed."""

    def __init__(self, folder: Path, frames: Sequence[int], store_frames: int) -> None:
        """`frames` of every video; a store holds the next videos up to `store_frames`."""
        self.folder = folder
        (folder / "videos/a").mkdir(parents=True)
        for number, count in enumerate(frames):
            address_video(folder / f"videos/a/v{number:02d}.mp4", number, count)
        self.manifest = manifest.build(
            "folder", folder / "videos", folder / "data", {"val_fraction": 0.3}
        )
        self.toml = folder / "address.toml"
        sizes = {
            "chunk_frames": 4,
            "shard_mb": 12 * FRAME_MB,
            "store_mb": store_frames * FRAME_MB,
            "batch_frames": 4,
        }
        self.toml.write_text(
            SPEC.partition("[store]")[0]
            + "".join(["[store]\n", *(f"{k} = {v}\n" for k, v in sizes.items())])
        )
        self.spec = load_spec(self.toml, [])
        self.undisturbed = extract.extract(
            self.spec, self.manifest, folder / "undisturbed", torch.device("cpu")
        )
        self.numbers = {
            video.video_id: int(video.video_id[-6:-4]) for video in self.manifest.videos
        }
        self.store_of = {
            self.numbers[video]: store
            for store, videos in self.undisturbed.plan.items()
            for video in videos
        }
        self.places = 0

    @property
    def frames_of(self) -> dict[int, int]:
        return {store: receipt.frames for store, receipt in self.undisturbed.receipts.items()}

    @property
    def cost_of_a_kill(self) -> int:
        """Frames: the largest store and the batches that were on their way to the next."""
        return max(self.frames_of.values()) + QUEUED_BATCHES * self.spec.store.batch_frames

    def new(self, laid_out: bool = False) -> Path:
        """A folder for caches, empty or with the cache as it is before its first store."""
        self.places += 1
        out = self.folder / f"place{self.places:04d}"
        out.mkdir()
        if laid_out:
            there = self.cache_in(out)
            there.mkdir()
            shutil.copy(self.undisturbed.path / HEADER_FILE, there)
            shutil.copytree(self.undisturbed.path / "manifest", there / "manifest")
        return out

    def cache_in(self, out: Path) -> Path:
        return out / self.undisturbed.name

    def extraction(self, server: Server, out: Path, **faults: Any) -> Child:
        """`stillframe extract` as a process."""
        command = ["extract", self.toml, self.manifest.folder, "--out", out, "--device", "cpu"]
        return self._start(server, out, faults, command=[str(part) for part in command])

    def worker(self, server: Server, out: Path, index: int, **faults: Any) -> Child:
        """One worker of a cache that is laid out."""
        job = ExtractionJob(
            caches=(str(self.cache_in(out)),), root=str(self.manifest.root), device="cpu"
        )
        return self._start(server, out, faults, job=job.model_dump_json(), index=str(index))

    def _start(self, server: Server, out: Path, faults: Mapping[str, Any], **what: Any) -> Child:
        log = {"log": str(_beside(out, "log")), "root": str(out), "timing": QUICK}
        stderr = _beside(out, "stderr")
        answer = server.ask("start", faults=log | dict(faults), stderr=str(stderr), **what)
        return Child(server, answer["pid"], stderr)

    def finish(self, server: Server, out: Path) -> None:
        """An extraction that nothing disturbs."""
        child = self.extraction(server, out)
        status = child.wait()
        assert status == 0, (status, child.stderr.read_text())

    def judge(self, out: Path, tally: Tally, had: Collection[int] = ()) -> None:
        """Counts a finished round, says what differs, and clears up. `had`: stores that were there before."""
        different = self.differences(out)
        assert not different, (tally.scenario, out, different, _beside(out, "stderr").read_text())
        tally.rounds += 1
        tally.identical += 1
        tally.encoded += self.encoded(out)
        tally.wanted += Counter(
            {store: frames for store, frames in self.frames_of.items() if store not in had}
        )
        for path in (_beside(out, "log"), _beside(out, "stderr")):
            path.unlink(missing_ok=True)
        shutil.rmtree(out, ignore_errors=out.is_mount())

    def encoded(self, out: Path) -> Counter[int]:
        """store -> frames encoded."""
        found: Counter[int] = Counter()
        log = _beside(out, "log")
        for line in log.read_text().splitlines() if log.exists() else []:
            what, _, *numbers = line.split()
            if what == "encoded":
                found.update(self.store_of[int(number)] for number in numbers)
        return found

    def stores_in(self, out: Path) -> set[int]:
        """Stores that are vouched for."""
        return {int(path.stem) for path in (self.cache_in(out) / "receipts").glob("*.json")}

    def unsound(self, out: Path) -> dict[str, Any]:
        """Store that is vouched for -> what of it is not as vouched. A cache that is refused as a whole vouches for nothing."""
        try:
            cache = Cache(self.cache_in(out))
        except BadInput:
            return {}
        assert cache.manifest.digest == cache.header.manifest
        done = cache.plan.keys() - set(cache.missing_stores())
        return {
            f"store {store}": wrong
            for store in sorted(done)
            if (wrong := check_store(cache, store))
        }

    def differences(self, out: Path) -> list[str]:
        """Files that are in one cache only or whose content differs."""
        found, wanted = (
            dict(_content(path)) for path in (self.cache_in(out), self.undisturbed.path)
        )
        found |= {
            path.name: "beside the cache"
            for path in out.iterdir()
            if path.name != self.undisturbed.name
        }
        return sorted(
            name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)
        )


def wait_for(what: Callable[[], object]) -> None:
    """Looks until something is true."""
    while not what():
        time.sleep(0.005)


def _content(folder: Path) -> Iterator[tuple[str, str]]:
    """Every file of a cache -> its SHA-256; without times, which never repeat: those of receipts, and
    logs."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "log.txt":
            data = path.read_bytes()
            if path.parent.name == "receipts" and path.suffix == ".json":
                clocked = {"seconds": None, "finished_s": None, "checksum": None}
                data = json.dumps(json.loads(data) | clocked).encode()
            yield path.relative_to(folder).as_posix(), hashlib.sha256(data).hexdigest()


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(f"{out.name}.{suffix}")
