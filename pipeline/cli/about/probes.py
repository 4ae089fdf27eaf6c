"""What can be imported, found out in a process of its own: a library that is broken may end the
process that imports it.

`python -m pipeline.cli.about.probes NAME...` answers each name with a line of JSON on stdout, in
order: a module, or one of `PROBES`. An answer has `error` where it failed, and else what was found.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.child_python import module_command, search_path

Answer = dict[str, Any]
LIMIT_S = 120
"""Seconds after which no more is expected of a process."""
ERROR_LETTERS = 200
"""Of what an import says where it fails; compilers say more."""


def ask_probes(names: Sequence[str]) -> dict[str, Answer]:
    """The answer to every name. Never raises: where a process dies over a name, that is its answer,
    and another one goes on."""
    answers: dict[str, Answer] = {}
    while left := [name for name in names if name not in answers]:
        lines, end = _ask(left)
        answers |= dict(zip(left, lines, strict=False))
        if len(lines) < len(left):
            answers[left[len(lines)]] = {"error": end}
    return answers


def _ask(names: Sequence[str]) -> tuple[list[Answer], str]:
    """The answers of one process, as far as it came, and how it ended."""
    command = [*module_command(__name__), *names]
    variables = os.environ | {"PYTHONPATH": search_path()}
    try:
        done = subprocess.run(
            command, env=variables, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_S
        )
        output, said = done.stdout, done.stderr
        if done.returncode < 0:
            end = f"ends Python: {signal.Signals(-done.returncode).name}"
        else:
            end = f"ends Python with exit code {done.returncode}"
    except subprocess.TimeoutExpired as error:
        output, said = error.stdout or b"", error.stderr or b""
        end = f"does not answer within {LIMIT_S} s"
    except OSError as error:
        return [], f"no process can be started: {error.strerror}"
    lines = [json.loads(line) for line in output.splitlines(keepends=True) if line[-1:] == b"\n"]
    last = said.decode(errors="replace").strip().rpartition("\n")[2]
    return lines, f"{end} ({last[:ERROR_LETTERS]})" if last else end


def torch_facts() -> Answer:
    """Version and devices of PyTorch; where it has no CUDA, why."""
    import torch

    facts: Answer = {"version": torch.__version__, "threads": torch.get_num_threads()}
    facts["built_for"] = torch.version.cuda
    if not torch.cuda.is_available():
        return facts | {"devices": [], "reason": _why_no_cuda()}
    devices = []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        capability = f"{about.major}.{about.minor}"
        devices.append({"name": about.name, "bytes": about.total_memory, "capability": capability})
    return facts | {"devices": devices, "reason": ""}


def _why_no_cuda() -> str:
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().partition("\n")[0][:ERROR_LETTERS]
    return "no device can be seen"


def decoder_facts() -> Answer:
    """The decoder as caches name it."""
    from pipeline.video.probe import decoder_identity

    return {"identity": decoder_identity()}


def kernel_facts() -> Answer:
    """The CUDA kernels of the selective scan. Raises where they cannot be imported."""
    from pipeline.models.temporal.layers.selective_scan import KERNELS

    kernel = importlib.import_module(KERNELS).selective_scan_fn
    return {"kernel": f"{kernel.__module__}.{kernel.__name__}"}


def hub_facts() -> Answer:
    """Where weights of the Hugging Face hub lie, and whether it may be asked for others."""
    from huggingface_hub import constants

    return {"folder": constants.HF_HUB_CACHE, "offline": constants.HF_HUB_OFFLINE}


def plugin_facts() -> Answer:
    """Plug-ins that installed packages bring: each with its `kind` and `name`, and with what is
    wrong where it cannot be used."""
    from pipeline.config import outside, plugins
    from pipeline.errors import StillframeError

    rows = []
    for kind in plugins.FOLDERS:
        for name in sorted(set(outside.outside_names(kind))):
            row = {"kind": kind, "name": name, "from": "", "error": ""}
            try:
                row["from"] = str(plugins.from_outside(kind, name))
                plugins.load(kind, name)
            except StillframeError as error:
                row["error"] = error.with_hint
            rows.append(row)
    return {"plugins": rows}


PROBES: dict[str, Callable[[], Answer]] = {
    "torch": torch_facts,
    "decoder": decoder_facts,
    "kernels": kernel_facts,
    "hub": hub_facts,
    "plugins": plugin_facts,
}


def _answer(name: str) -> Answer:
    try:
        if name in PROBES:
            return PROBES[name]()
        importlib.import_module(name)
    except BaseException as error:  # a library may raise anything, and may exit
        text = " ".join(str(error).split())[:ERROR_LETTERS]
        return {"error": f"{type(error).__name__}: {text}".removesuffix(": ")}
    return {}


def answer_each(names: Sequence[str]) -> None:
    """Answers on what is stdout now; what libraries print goes to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        for name in names:
            answers.write(json.dumps(_answer(name)) + "\n")
            answers.flush()


if __name__ == "__main__":
    answer_each(sys.argv[1:])
