"""Whether everything is there that stillframe needs: versions, devices, disks, limits.

Nothing here imports a library whose absence or defect is to be told: that is done by `probes`, in
processes of their own.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.cli.about.probes import Answer, ask_probes
from pipeline.cli.about.requirements import Requirement, requirements
from pipeline.cli.about.version import version_text
from pipeline.device import cores, free_memory_bytes
from pipeline.errors import count_text

State = Literal["ok", "note", "absent", "broken", "problem"]
LEAST_PYTHON = (3, 11)
OPEN_FILES = 256
"""Descriptors that a process may want at once, however large a cache is: 128 for the files that it
has mapped (`page_cache.MAPS`), and what libraries, decoders and readers hold."""
LITTLE_DISK, LITTLE_SHM = 5e9, 1e9
"""Bytes below which it is said that there is little left."""
ORDER = ("torch", "transformers", "zarr", "numpy", "av")
"""Packages whose versions are in a report on a defect."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. As JSON it is what `doctor --json` prints."""

    name: str
    state: State
    """absent: not there, and not needed; broken: there, of no use, and not needed; problem: needed,
    and not as it must be."""
    text: str
    next: str = ""
    """The next step, where there is one to take."""


def all_checks() -> list[Check]:
    """Everything that is looked at, in the order in which it is told. Never raises."""
    wanted = requirements()
    there = [each for each in wanted if each.installed]
    modules = [each.module for each in there if each.package != "torch"]
    # Two processes: what takes longest, which is what imports torch, beside all else.
    apart = ["torch", "transformers", "webdataset", "kernels"]
    others = [*(name for name in dict.fromkeys(modules) if name not in apart), "hub", "plugins"]
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(ask_probes, (apart, ["decoder", *others]))
    answers = first | second
    return [
        Check("stillframe", "ok", version_text()),
        _python(),
        *_packages(wanted, answers),
        *_extras(wanted, answers),
        _decoder(answers["decoder"]),
        *_devices(answers["torch"]),
        _kernels(answers),
        *_disks(),
        _shared_memory(),
        _descriptors(),
        *_hub(answers["hub"]),
        *_plugins(answers["plugins"]),
    ]


# Versions


def _python() -> Check:
    version = platform.python_version()
    text = f"{version} ({platform.python_implementation()}), {platform.platform()}"
    if sys.version_info < LEAST_PYTHON:
        wanted = ".".join(map(str, LEAST_PYTHON))
        return Check("Python", "problem", text, f"use Python {wanted} or newer")
    return Check("Python", "ok", text)


def _packages(wanted: list[Requirement], answers: Mapping[str, Answer]) -> Iterator[Check]:
    """Those that must be there: one line each for what a report names, one for all others."""
    needed = [each for each in wanted if not each.extra]
    if not needed:
        yield Check("packages", "note", "nothing says which are needed", "make setup")
    others = []
    for each in sorted(needed, key=lambda one: one.package not in ORDER):
        found = _of_package(each, answers)
        if found.state == "ok" and each.package not in ORDER:
            others.append(f"{each.package} {found.text}")
        else:
            yield found
    if others:
        yield Check("other packages", "ok", ", ".join(others))


def _of_package(each: Requirement, answers: Mapping[str, Answer]) -> Check:
    """One that must be there."""
    version = each.installed
    install = f"pip install '{each.package}>={each.least}'"
    if version is None:
        return Check(each.package, "problem", "not installed", install)
    if each.is_too_old(version):
        return Check(each.package, "problem", f"{version}, wanted {each.least} or newer", install)
    if error := answers.get(each.module, {}).get("error"):
        again = f"pip install --force-reinstall --no-deps '{each.package}=={version}'"
        return Check(each.package, "problem", f"{version} cannot be imported: {error}", again)
    return Check(each.package, "ok", str(answers.get(each.module, {}).get("version", version)))


def _extras(wanted: list[Requirement], answers: Mapping[str, Answer]) -> Iterator[Check]:
    """Those that some commands need: one line for each extra."""
    for extra in dict.fromkeys(each.extra for each in wanted if each.extra):
        of_extra = [each for each in wanted if each.extra == extra]
        found = [_of_package(each, answers) for each in of_extra]
        texts = ", ".join(f"{check.name} {check.text}" for check in found)
        state: State = "ok"
        if any(each.installed is None for each in of_extra):
            state = "absent"
        if any(c.state == "problem" and e.installed for c, e in zip(found, of_extra, strict=True)):
            state = "broken"
        install = f"pip install 'stillframe[{extra}]'"
        yield Check(f"extra {extra}", state, texts, "" if state == "ok" else install)


def _decoder(answer: Answer) -> Check:
    if error := answer.get("error"):
        again = "pip install --force-reinstall --no-deps av"
        return Check("decoder", "problem", f"cannot be used: {error}", again)
    return Check("decoder", "ok", str(answer["identity"]))


# Devices


def _devices(answer: Answer) -> Iterator[Check]:
    if error := answer.get("error"):
        yield Check("CUDA", "absent", f"unknown, since torch cannot be imported: {error}")
    elif answer["devices"]:
        devices = ", ".join(
            f"{device['name']} ({_size(device['bytes'])}, capability {device['capability']})"
            for device in answer["devices"]
        )
        yield Check("CUDA", "ok", f"{devices}; torch is built for CUDA {answer['built_for']}")
    else:
        yield Check("CUDA", "absent", f"none, so the CPU computes: {answer['reason']}")
    threads = f", {answer['threads']} threads of torch" if "threads" in answer else ""
    yield Check("cores", "ok", f"{cores()} of {os.cpu_count()}{threads}")
    free = free_memory_bytes()
    text = "the system does not say" if free is None else f"{_size(free)} free{_of_memory()}"
    yield Check("memory", "note" if free is not None and free < LITTLE_SHM else "ok", text)


def _of_memory() -> str:
    with suppress(OSError, ValueError):
        return f" of {_size(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))}"
    return ""


def _kernels(answers: Mapping[str, Answer]) -> Check:
    name, answer = "Mamba kernels", answers["kernels"]
    slow = "the selective scan runs in plain PyTorch"
    if "error" not in answer:
        if answers["torch"].get("devices"):
            return Check(name, "ok", str(answer["kernel"]))
        return Check(name, "note", f"{answer['kernel']}, for CUDA, which is not here: {slow}")
    if answer["error"].startswith("ModuleNotFoundError: No module named 'mamba_ssm'"):
        has_cuda = bool(answers["torch"].get("devices"))
        text = f"mamba-ssm is not installed: {slow}"
        return Check(
            name, "note" if has_cuda else "absent", text, "pip install 'stillframe[mamba]'"
        )
    return Check(name, "broken", f"{slow}: {answer['error']}", "build mamba-ssm for this torch")


# The machine


def _disks() -> Iterator[Check]:
    yield _disk("working folder", Path.cwd, "cd to a folder that you may write into")
    advice = "set TMPDIR to a folder that you may write into"
    yield _disk("temporary files", lambda: Path(tempfile.gettempdir()), advice)


def _disk(name: str, find: Callable[[], Path], advice: str) -> Check:
    try:
        folder = find()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Check(name, "problem", f"there is none: {error.strerror or error}", advice)
    text = f"{folder}, {_size(free)} free"
    if not os.access(folder, os.W_OK):
        return Check(name, "problem", f"{folder} cannot be written into", advice)
    if free < LITTLE_DISK:
        return Check(
            name, "note", f"{text}, which is little", "stillframe plan says what is needed"
        )
    return Check(name, "ok", text)


def _shared_memory() -> Check:
    name = "shared memory"
    from pipeline.video.isolated.packets import Packets

    try:
        ours, theirs = Packets.pair()
        with contextlib.closing(ours), contextlib.closing(theirs):
            os.close(ours.new_memory("stillframe-doctor", 1))
    except (AttributeError, OSError) as error:
        text = f"frames cannot be handed over by the decoder: {error}"
        return Check(name, "problem", text, "allow memfd_create, or a writable TMPDIR on macOS")
    how = "frames can be handed over"
    try:
        room = shutil.disk_usage("/dev/shm")
    except OSError:
        return Check(name, "ok", f"{how}; there is no /dev/shm")
    text = f"{how}; /dev/shm has {_size(room.free)} free of {_size(room.total)}"
    if room.total < LITTLE_SHM:
        hint = "docker run --shm-size=2g, if you load data with worker processes of your own"
        return Check(name, "note", f"{text}, which is little", hint)
    return Check(name, "ok", text)


def _descriptors() -> Check:
    try:
        import resource
    except ImportError:
        return Check("open files", "note", "the system does not say how many there may be")
    soft, hard = (
        "unlimited" if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    text = f"{soft} (at most {hard}); {OPEN_FILES} are needed, for caches of any size"
    if isinstance(soft, int) and soft < OPEN_FILES:
        return Check("open files", "problem", text, f"ulimit -n {OPEN_FILES}")
    return Check("open files", "ok", text)


# What is from elsewhere


def _hub(answer: Answer) -> Iterator[Check]:
    if error := answer.get("error"):
        yield Check("Hugging Face", "note", f"unknown: {error}")
        return
    folder = Path(answer["folder"])
    is_there = "" if folder.is_dir() else ", not there yet"
    flags = [
        f"{name}={os.environ[name]}"
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        if name in os.environ
    ]
    state = "offline: nothing is downloaded" if answer["offline"] else "online"
    said = f" ({', '.join(flags)})" if flags else ""
    yield Check("Hugging Face", "ok", f"{folder}{is_there}; {state}{said}")


def _plugins(answer: Answer) -> Iterator[Check]:
    name = "plug-ins"
    if error := answer.get("error"):
        yield Check(name, "note", f"unknown: {error}")
        return
    rows = answer["plugins"]
    sound = [f"{row['kind']} {row['name']} of {row['from']}" for row in rows if not row["error"]]
    if sound or not rows:
        yield Check(name, "ok", ", ".join(sound) or "none from packages")
    for row in rows:
        if row["error"]:
            what = f"{row['kind']} {row['name']} cannot be used: {row['error']}"
            yield Check(name, "problem", what, "mend that package, or pip uninstall it")


# For a report on a defect


def report_text(checks: list[Check]) -> str:
    """A few lines for whoever is asked for help: no folders, and no name of a user."""
    by_name = {check.name: check for check in checks}
    lines = [
        f"stillframe {by_name['stillframe'].text}; Python {by_name['Python'].text}",
        ", ".join(f"{name} {by_name[name].text}" for name in ORDER if name in by_name),
        f"decoder {by_name['decoder'].text}; extras: {_extras_text(checks)}",
        f"CUDA: {by_name['CUDA'].text}; Mamba kernels: {by_name['Mamba kernels'].state}",
        f"cores {by_name['cores'].text}; memory {by_name['memory'].text}; open files "
        f"{by_name['open files'].text.partition(';')[0]}",
    ]
    lines += [
        f"{check.state}: {check.name}: {check.text}"
        for check in checks
        if check.state in ("broken", "problem")
    ]
    return "\n".join(map(without_names, lines))


def _extras_text(checks: list[Check]) -> str:
    there = [
        check.name.removeprefix("extra ")
        for check in checks
        if check.name.startswith("extra ") and check.state == "ok"
    ]
    return ", ".join(there) or "none"


def without_names(text: str) -> str:
    """A text in which the home folder is ~, and the user's name is no part of a path."""
    with suppress(RuntimeError):
        home = str(Path.home())
        if home != "/":
            text = text.replace(home, "~")
    with suppress(OSError, KeyError):
        text = re.sub(rf"(?<=/){re.escape(getpass.getuser())}(?=[/\s:,;'\")]|$)", "USER", text)
    return text


def problems_text(checks: list[Check]) -> str:
    """One line on how it stands."""
    count = sum(check.state == "problem" for check in checks)
    return f"{count_text(count, 'problem')} found" if count else "everything needed is there"


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
