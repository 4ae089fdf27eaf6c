"""The card of a repository: what it is, what it is made from, what it scores, how it is loaded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData, EvalResult, ModelCardData

from pipeline.cache.cache import Cache
from pipeline.config.plugins import FROM
from pipeline.errors import count_text
from pipeline.exchange.hub.address import HubAddress
from pipeline.exchange.hub.contents import PLACE, Contents
from pipeline.train.bootstrap import NO_INTERVAL
from pipeline.train.evaluation import Evaluation
from pipeline.train.run import Run

CARD = "README.md"
SEAL = re.compile(r"<!-- written by stillframe push ([0-9a-f]{64}) -->\n\Z")
PIPELINES = {"classify": "video-classification", "depth": "depth-estimation"}
"""Task -> what the hub calls it, of those that it has a word for."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
NO_LICENCE = (
    "No licence is given: only its author can say what others may do with it. The encoder and the "
    "videos have licences of their own."
)
WITH_LICENCE = "Licence: {}. The encoder and the videos have licences of their own."


def card_of(contents: Contents, address: HubAddress, licence: str | None) -> bytes:
    """README.md for a repository, with its metadata in front, and a checksum in its last line: a
    card that somebody has edited is theirs from then on."""
    lines = (
        _of_run(contents, contents.subject, address, licence)
        if isinstance(contents.subject, Run)
        else _of_cache(contents, contents.subject, address, licence)
    )
    text = "\n".join(lines)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{text}\n\n<!-- written by stillframe push {digest} -->\n".encode()


def is_as_written(card: bytes) -> bool:
    """Whether a card is one that a push has written, and nobody has changed it since."""
    text = card.decode("utf-8", errors="replace")
    found = SEAL.search(text)
    if found is None:
        return False
    return (
        hashlib.sha256(text[: found.start()].removesuffix("\n\n").encode()).hexdigest() == found[1]
    )


def _of_run(
    contents: Contents, run: Run, address: HubAddress, licence: str | None
) -> Iterator[str]:
    header = run.header
    recipe, spec = header.recipe, header.spec
    task, temporal = recipe["task"], recipe["temporal"]
    model = spec["encoder"].get("model")
    is_released = isinstance(model, str) and HUB_ID.fullmatch(model) and not Path(model).is_dir()
    yield _front(
        ModelCardData(
            library_name="stillframe",
            license=licence,
            pipeline_tag=PIPELINES.get(task["name"]),
            base_model=model if is_released else None,
            tags=["stillframe", "video", task["name"], temporal["name"]],
            model_name=contents.name,
            eval_results=list(_results(contents.evaluations)) or None,
        )
    )
    yield f"# {_plain(contents.name)}"
    yield ""
    yield (
        "A run of stillframe: a temporal module "
        f"({_code(temporal['name'])}) and a readout for the task {_code(task['name'])}, trained on "
        "the recorded tokens of a frozen image model. No code is in this repository, and none of "
        "it is run."
    )
    yield from _load(
        address,
        [
            "import stillframe",
            "",
            f'model = stillframe.load_run("{address}")  # a torch.nn.Module',
        ],
        "run",
    )
    yield from _needed(recipe, spec)
    yield from _scores(contents.evaluations)
    last = run.checkpoint("last")
    windows, training = recipe["windows"], recipe["training"]
    rate = f"{windows['fps']:g} frames a second" if windows.get("fps") else "frames of the cache"
    rows = {
        "recipe": _code(recipe["name"]),
        "encoder": _encoder(spec),
        "layers": ", ".join(map(str, spec["encoder"]["layers"])),
        "frames": _frames(spec),
        "windows": f"{windows['frames']} frames, {rate}",
        "training": f"{last.steps if last else 0} steps of {training['batch_size']} windows",
        "parameters": ", ".join(f"{name} {count:,}" for name, count in header.parameters.items()),
        "labels": f"{len(header.labels)}: {_few(header.labels)}" if header.labels else "",
        "cache": f"{_code(header.cache.name)}, codec {_code(header.cache.codec)}",
        "clips": ", ".join(f"{count} {name}" for name, count in header.clips.items() if count),
        "began with": "" if header.init is None else f"a run at step {header.init.step}",
        "made with": _versions(header.versions),
    }
    yield from _table("What it is made from", rows)
    yield from _licence(licence)


def _of_cache(
    contents: Contents, cache: Cache, address: HubAddress, licence: str | None
) -> Iterator[str]:
    manifest = contents.manifest
    assert manifest is not None
    spec, tokens = cache.header.spec, cache.header.tokens
    frames = sum(receipt.frames for receipt in cache.receipts.values())
    yield _front(
        DatasetCardData(
            license=licence,
            pretty_name=contents.name,
            tags=["stillframe", "video", "features"],
            library_name="stillframe",
            viewer=False,
        )
    )
    yield f"# {_plain(contents.name)}"
    yield ""
    yield (
        "A token cache of stillframe: what a frozen image "
        f"model says of {frames:,} frames of {count_text(len(manifest.videos), 'video')}, as Zarr "
        "groups with checksums. The videos themselves are not in it; names of clips, labels and "
        "other truth are."
    )
    yield from _load(
        address,
        [
            "import stillframe",
            "",
            f'cache = stillframe.open_cache("{address}")',
            "clip = cache.read(cache.clips[0].clip_id)  # clip.patches, clip.time_s_T, clip.truth",
        ],
        "cache",
    )
    yield from _needed(spec)
    splits = {split: len(manifest.split(split)) for split in manifest.splits}
    rows = {
        "data set": _code(manifest.origin.dataset),
        "clips": ", ".join(f"{split} {count}" for split, count in splits.items()),
        "labels": f"{len(manifest.labels)}: {_few(manifest.labels)}" if manifest.labels else "",
        "videos not whole": f"{len(cache.failures)}" if cache.failures else "",
        "encoder": _encoder(spec),
        "layers": ", ".join(map(str, tokens.layers)),
        "frames": _frames(spec),
        "tokens of a frame": (
            f"{tokens.grid_hw[0]} x {tokens.grid_hw[1]} patches and {tokens.special_tokens} "
            f"special tokens, {tokens.width} numbers each"
        ),
        "codec": _code(spec["codec"]["name"]),
        "fingerprint": _code(cache.fingerprint),
        "format": f"{cache.header.format_version}",
        "made with": _versions(
            {
                tool: each
                for receipt in cache.receipts.values()
                for tool, each in receipt.versions.items()
            }
        ),
    }
    yield from _table("What is in it", rows)
    yield from _licence(licence)


def _front(data: Any) -> str:
    return f"---\n{data.to_yaml().strip()}\n---\n"


def _results(evaluations: Sequence[Evaluation]) -> Iterator[EvalResult]:
    """The first metric of every form and split, as the hub lists results of models."""
    for evaluation in evaluations:
        metric = evaluation.metrics[0].name
        for form, scores in evaluation.forms.items():
            yield EvalResult(
                task_type=PIPELINES.get(evaluation.task, evaluation.task),
                dataset_type=evaluation.cache.name,
                dataset_name=evaluation.cache.name,
                dataset_split=evaluation.split,
                metric_type=metric,
                metric_name=f"{metric}, {form}",
                metric_value=scores[metric].score,
            )


def _load(address: HubAddress, python: Sequence[str], what: str) -> Iterator[str]:
    yield ""
    yield "```python"
    yield from python
    yield "```"
    yield ""
    yield "```"
    yield f"stillframe pull {address} --out {what}s/{address.repository.partition('/')[2]}"
    yield "```"


def _needed(*tables: Any) -> Iterator[str]:
    """Plug-ins that do not ship with the package, which the user must name or install."""
    found = sorted({_plugin_text(each) for table in tables for each in _from_outside(table)})
    if found:
        yield ""
        yield (
            f"It needs {', '.join(found)}, which is not in this repository: ask its author, look "
            "at it, and name it (`stillframe --plugins FILE ...`) or install it."
        )


def _from_outside(value: Any) -> Iterator[Mapping[str, str]]:
    if isinstance(value, Mapping):
        if isinstance(value.get(FROM), Mapping):
            yield value[FROM]
        for each in value.values():
            yield from _from_outside(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _from_outside(each)


def _plugin_text(origin: Mapping[str, str]) -> str:
    if "file" in origin:
        return f"the plug-in {_code(origin['file'])} (SHA-256 {_code(origin.get('sha256', ''))})"
    return f"the package {_code(origin.get('distribution', ''))} {_code(origin.get('version', ''))}"


def _scores(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    if not evaluations:
        return
    yield ""
    yield "## Scores"
    yield ""
    yield "| split | form | metric | score | 95 % interval | trivial answer |"
    yield "|---|---|---|---|---|---|"
    for evaluation in evaluations:
        for form, scores in evaluation.forms.items():
            for metric in evaluation.metrics:
                found = scores[metric.name]
                unit = f", {metric.unit}" if metric.unit else ""
                better = "" if metric.higher_is_better else " (an error)"
                yield (
                    f"| {_cell(evaluation.split)} | {form} | {_cell(metric.name)}{unit}{better} "
                    f"| {found.score:.3f} | {found.span().replace(NO_INTERVAL, '-')} "
                    f"| {evaluation.trivial[metric.name]:.3f} |"
                )
    yield ""
    clips = ", ".join(f"{each.clips_scored} of {each.split}" for each in evaluations)
    yield f"Clips scored: {clips}. Intervals are bootstrapped, with whole videos resampled."


def _table(title: str, rows: Mapping[str, str]) -> Iterator[str]:
    yield ""
    yield f"## {title}"
    yield ""
    yield "| | |"
    yield "|---|---|"
    for key, value in rows.items():
        if value:
            yield f"| {key} | {value} |"


def _licence(licence: str | None) -> Iterator[str]:
    yield ""
    yield "## Licence"
    yield ""
    yield NO_LICENCE if licence is None else WITH_LICENCE.format(_code(licence))


def _encoder(spec: Mapping[str, Any]) -> str:
    table = spec["encoder"]
    model = table.get("model")
    if not isinstance(model, str):
        return _code(table["name"])
    if PLACE.fullmatch(model):
        return f"{_code(table['name'])}, a model of its author's"
    at = f" at {_code(table['revision'])}" if table.get("revision") else ""
    return f"{_code(table['name'])}: {_code(model)}{at}"


def _frames(spec: Mapping[str, Any]) -> str:
    frames = spec["frames"]
    rate = "every frame" if frames["fps"] == "all" else f"{frames['fps']:g} a second"
    size = f", squares of {frames['size_px']} px" if frames.get("size_px") else ""
    return f"{rate}{size}"


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{tool} {version}" for tool, version in sorted(versions.items()))


def _few(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(_code, names[:most])) + more


def _code(text: str) -> str:
    """Text that Markdown shows as it is, in a cell too."""
    return f"`{_cell(str(text)).replace('`', chr(39))}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")


def _plain(text: str) -> str:
    return re.sub(r"[^\w. -]", "_", text)
