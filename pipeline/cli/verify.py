"""Whether a cache can be trusted, on the command line: status, verify, diff, spot-check."""

from __future__ import annotations

import time
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import (
    FINISHED_WITH_FAILURES,
    AsJson,
    CacheFolder,
    Device,
    ManifestFolder,
    Root,
    Sets,
    SpecArgument,
    app,
    named_file,
    other_manifest,
    torch_device,
)
from pipeline.errors import BadInput, count_text

if TYPE_CHECKING:
    from pipeline.cache.cache import Cache
    from pipeline.cache.parts.parted import PartedCache
    from pipeline.cache.parts.verification import PartedVerification
    from pipeline.cache.verify import Verification
    from pipeline.extract.upkeep.diff import SpecDiff
    from pipeline.extract.upkeep.repair import RepairResult
    from pipeline.extract.upkeep.spot_check import SpotCheck
from pipeline.cli.show import show_parted_status, show_status, spans_text

BAR = 40
"""Columns of the longest bar of a histogram."""


@app.command()
def status(
    cache: CacheFolder, manifest_folder: ManifestFolder = None, as_json: AsJson = False
) -> None:
    """Show what a cache holds, and who is at work on it. That is coverage per split, failures by
    reason, bytes and speed.

    With --manifest, how much of that manifest the cache covers. Of a cache in parts the sums are
    shown; what is true of one part, the status of that part says.

    Example: stillframe status caches/demo-0123456789ab
    """
    from pipeline.cache.parts.chosen import is_parted, open_cache
    from pipeline.cache.parts.parted import PartedCache
    from pipeline.cache.parts.summary import parted_status

    manifest = other_manifest(manifest_folder)
    if manifest is None and is_parted(cache):
        show_parted_status(parted_status(PartedCache(cache)), as_json)
    else:
        show_status(open_cache(cache, manifest), as_json, manifest)


@app.command()
def verify(
    cache: CacheFolder,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Remove the damaged stores, and make these and no others anew."
        ),
    ] = False,
    root: Root = None,
    source: Annotated[
        str | None, typer.Option(metavar="CACHE", help="What a derived cache comes from, if moved.")
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Compare every file of a cache with its checksum. What is damaged is named, with the frames
    and videos it hits.

    A cache in parts is compared part by part, and --repair mends one part at a time.

    Example: stillframe verify caches/demo-0123456789ab --repair
    """
    from pipeline.cache.cache import Cache
    from pipeline.cache.parts.chosen import is_parted
    from pipeline.cache.parts.parted import PartedCache
    from pipeline.cache.verify import verify_cache
    from pipeline.cli import console

    if is_parted(cache):
        _verify_parts(PartedCache(cache), repair, as_json)
        return
    opened = Cache(cache)
    begin = time.monotonic()
    with console.progress("verify") as update:

        def on_bytes(done: int, total: int) -> None:
            speed = done / max(1e-9, time.monotonic() - begin)
            eta = console.duration_text((total - done) / max(1.0, speed))
            update(done / 1e6, total / 1e6, f"MB  {console.bytes_text(speed)}/s  ETA {eta}")

        verification = verify_cache(opened, on_bytes=on_bytes)
    facts = _verification_facts(verification)
    repaired = None
    if not as_json:
        _show_verification(verification)
    if repair and (not verification.is_valid or verification.orphans):
        repaired = _repair(verification, root, Cache(source) if source else None, device)
        facts["repair"] = {
            "stores": repaired.stores,
            "changed": repaired.changed,
            "failures": repaired.failures,
            "removed": repaired.removed,
            "sound": repaired.after.is_valid,
        }
    if as_json:
        console.show_json(facts)
    elif repaired:
        _show_repair(repaired)
    _end_of_verify(verification, repaired)


def _verify_parts(cache: PartedCache, repair: bool, as_json: bool) -> None:
    """`verify` of a cache in parts: a line for each that is damaged. Exit code 2 where one is."""
    from pipeline.cache.parts.verification import verify_parts
    from pipeline.cli import console
    from pipeline.datasets.manifest.parts import part_name

    if repair:
        raise BadInput(
            f"{cache} is a cache in parts, and --repair mends one part at a time",
            f"see which are damaged: stillframe verify {cache}; then: stillframe verify "
            f"{cache}/{part_name(0)} --repair",
        )
    with console.progress("verify") as update:
        found = verify_parts(cache, lambda done, total: update(done, total, "parts"))
    if as_json:
        console.show_json(
            {
                "cache": str(cache),
                "parts": {"planned": len(cache), "begun": found.begun, "checked": found.parts},
                "stores_checked": found.checked,
                "stores_missing": found.missing,
                "problems": [bad.model_dump() for bad in found.bad],
                "left_over": found.orphans,
            }
        )
    else:
        _show_parts_verification(found)
    if found.bad:
        parts = count_text(len(found.bad), "part")
        raise BadInput(
            f"{cache} is damaged in {parts}: {console.few_text([bad.part for bad in found.bad])}",
            f"part by part: {found.bad[0].next_step}",
        )


def _show_parts_verification(found: PartedVerification) -> None:
    from pipeline.cli import console

    for bad in found.bad:
        console.show(bad.text)
    if not found.bad:
        console.show(
            f"{found.cache}: {count_text(found.parts, 'part')}, "
            f"{count_text(found.checked, 'store')}, every checksum holds"
        )
    _show_orphans(found.orphans)
    if found.missing or found.begun < len(found.cache):
        console.show(
            f"{len(found.cache) - found.begun} of {len(found.cache)} parts not begun, "
            f"{count_text(found.missing, 'store')} of the others not extracted yet: run extract "
            "again"
        )


def _show_orphans(orphans: dict[str, str]) -> None:
    from pipeline.cli import console

    if orphans:
        console.show_table("left over, read by nobody", ("what", "why"), list(orphans.items()))


def _repair(
    verification: Verification, root: Path | None, source: Cache | None, device: str | None
) -> RepairResult:
    from pipeline.cli import console
    from pipeline.extract.upkeep.repair import repair

    with console.progress("repair") as update:
        return repair(
            verification,
            root,
            source,
            torch_device(device),
            on_frames=lambda done, total: update(done, total, "frames"),
        )


def _verification_facts(verification: Verification) -> dict[str, Any]:
    cache = verification.cache
    return {
        "cache": str(cache),
        "stores_checked": verification.checked,
        "stores_missing": verification.missing,
        "problems": [
            {
                "store": damage.store,
                "file": damage.file,
                "kind": damage.kind,
                "problem": damage.problem,
                "rows": damage.rows,
                "videos": damage.videos,
            }
            for damage in verification.damage
        ],
        "of_cache": verification.cache_problems,
        "left_over": verification.orphans,
    }


def _show_verification(verification: Verification) -> None:
    from pipeline.cache.corruption import group_damage
    from pipeline.cli import console

    cache = verification.cache
    if verification.damage:
        console.show(f"{len(verification.stores)} of {verification.checked} stores damaged")
    for group in group_damage(verification.damage):
        files = "" if group.kind == "gone" else f"{console.few_text(group.files)}: "
        console.show(f"store {spans_text(group.stores)}: {files}{group.problem}")
        if group.frames:
            console.show(f"    {group.frames} frames of {console.few_text(group.videos)}")
    if verification.cache_problems:
        console.show_table(
            "damaged, and of no store",
            ("file", "problem"),
            list(verification.cache_problems.items()),
        )
    if verification.is_valid:
        console.show(f"{cache}: {count_text(verification.checked, 'store')}, every checksum holds")
    if cache.unvouched:
        console.say(cache.unvouched)
    _show_orphans(verification.orphans)
    if verification.missing:
        step = (
            "derived yet: run derive" if cache.header.derived_from else "extracted yet: run extract"
        )
        console.show(
            f"{len(verification.missing)} of {len(cache.plan)} stores are not {step} again"
        )


def _show_repair(repaired: RepairResult) -> None:
    from pipeline.cli import console

    if repaired.stores:
        console.show(f"made anew: store {spans_text(repaired.stores)}")
    for store in repaired.changed:
        console.show(
            f"store {store} is sound, but not what its receipt vouched for before: it was made on "
            "another device, with other tools or from other videos"
        )
    if repaired.removed:
        console.show(f"removed: {console.few_text(repaired.removed)}")
    if repaired.failures:
        console.show_table(
            f"{count_text(len(repaired.failures), 'video')} failed",
            ("video", "reason"),
            list(repaired.failures.items()),
        )


def _end_of_verify(verification: Verification, repaired: RepairResult | None) -> None:
    """Exit code 0 for a sound cache, 2 for a damaged one; 3 where a store that was made anew lists
    failed videos."""
    from pipeline.cache.corruption import count_damaged_frames, damaged_videos
    from pipeline.cache.verify import advice

    left = repaired.after if repaired else verification
    cache = left.cache
    if left.damage:
        raise BadInput(
            f"{cache} is damaged in {count_text(len(left.stores), 'store')}: "
            f"{count_text(count_damaged_frames(left.damage), 'frame')} of "
            f"{count_text(len(damaged_videos(left.damage)), 'video')} cannot be trusted",
            f"only these stores are redone by: stillframe verify {cache} --repair",
        )
    if verification.cache_problems:
        file, problem = next(iter(verification.cache_problems.items()))
        # A problem that came up while a file was read begins with its path.
        where = "" if problem.startswith(f"{cache}/") else f"{cache}/{file}: "
        raise BadInput(f"{where}{problem}", advice(cache, file))
    if repaired and repaired.failures:
        raise typer.Exit(FINISHED_WITH_FAILURES)


@app.command()
def diff(
    spec: SpecArgument,
    cache: CacheFolder,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Name the fields in which a spec and a cache differ. It says what that costs: nothing, a
    derivation, or encoding again.

    Exit code 0 if the spec asks for this very cache, 3 if not.

    Example: stillframe diff demo caches/demo-0123456789ab --set codec.name=int8
    """
    import dataclasses

    from pipeline.cache.cache import Cache
    from pipeline.cli import console
    from pipeline.config.cache_spec import load_spec
    from pipeline.extract.upkeep.diff import compare_spec

    difference = compare_spec(load_spec(named_file("spec", spec), sets or []), Cache(cache))
    if as_json:
        console.show_json(dataclasses.asdict(difference))
    else:
        _show_difference(difference, spec, cache)
    if difference.verdict != "same":
        raise typer.Exit(FINISHED_WITH_FAILURES)


def _show_difference(difference: SpecDiff, spec: str, cache: str) -> None:
    import json

    from pipeline.cli import console

    if difference.differ:
        rows = [
            (field, json.dumps(ours), json.dumps(theirs))
            for field, ours, theirs in difference.differ
        ]
        console.show_table("", ("field", "spec", "cache"), rows)
    if difference.unknown:
        console.show(f"weights not compared: {difference.unknown}")
    name = difference.name or "a new cache"
    frames = (
        "its frames cannot be counted here"
        if difference.frames is None
        else f"{difference.frames} frames"
    )
    size = (
        f", {console.bytes_text(difference.store_bytes)}"
        if difference.store_bytes is not None
        else ""
    )
    if difference.verdict == "same":
        console.show(f"{spec} asks for {cache}: nothing would be computed")
    elif difference.verdict == "not known":
        console.show(f"nothing else differs: if the weights are the same, {spec} asks for {cache}")
    elif difference.verdict == "derivable":
        console.show(
            f"no frame need be encoded again ({frames}{size}); with the rounding of the tokens "
            f"here: {difference.command}"
        )
        console.show(f"extract would encode them all, into {name}")
    else:
        console.show(f"extract would encode everything ({frames}{size}) into {name}")
        if difference.verdict == "new layers":
            console.show(f"new in it: layers {difference.new_layers}; the others are here")
        elif difference.why_not:
            console.show(f"not to be derived: {difference.why_not}")


@app.command("replay", hidden=True)  # its name before 0.5.0
@app.command("spot-check")
def spot_check(
    cache: CacheFolder,
    fraction: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Of the cached frames.")
    ] = 0.001,
    seed: Annotated[int, typer.Option(min=0, help="Which frames.")] = 0,
    root: Root = None,
    precision: Annotated[
        str | None,
        typer.Option(help="Encode in this one, as float32, to see what the cache's own costs."),
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Encode some cached frames again and compare them. It says how far the stored tokens are from
    fresh ones of this machine.

    Exit code 3 if a token is further off than its codec allows, or a video has changed or is gone.

    Example: stillframe spot-check caches/demo-0123456789ab --fraction 0.01
    """
    from pipeline.cache.cache import Cache
    from pipeline.cli import console
    from pipeline.extract.upkeep import spot_check as module

    with console.progress("spot-check") as update:
        outcome = module.spot_check(
            Cache(cache),
            fraction,
            root,
            torch_device(device),
            seed,
            lambda done, total: update(done, total, "frames"),
            precision,
        )
    if as_json:
        console.show_json(asdict(outcome))
    else:
        _show_spot_check(outcome, precision)
    if not outcome.is_sound:
        raise typer.Exit(FINISHED_WITH_FAILURES)


def _show_spot_check(outcome: SpotCheck, precision: str | None) -> None:
    from pipeline.cli import console

    console.show(
        f"{outcome.cache}: {outcome.frames_sampled} frames of {outcome.videos_sampled} videos "
        "encoded again"
    )
    for name, array in outcome.arrays.items():
        console.show()
        console.show(
            f"{name}: cosine of {array.tokens} tokens  min {array.min:.7f}  "
            f"1 % {array.percentile_1:.7f}  median {array.median:.7f}"
        )
        _show_histogram(array.histogram, outcome.bins)
        if array.below:
            console.show(
                f"  {array.below} tokens are further off than the codec allows "
                f"(down to {array.allowed:.7f})"
            )
    if outcome.worst:
        rows = [
            (
                frame.video,
                f"{frame.time_s:.3f}",
                frame.array,
                f"{frame.cosine:.7f}",
                "drifted" if frame.drifted else "",
            )
            for frame in outcome.worst
        ]
        columns = ("video", "time, s", "array", "cosine", "")
        console.show_table("worst frames", columns, rows, justify="lrlrl")
        console.show(f"times of frames differ by {outcome.mismatch_s:.6f} s at most")
    if precision is not None:
        console.show(f"encoded in {precision}, so no token is called drifted")
    elif not outcome.judged:
        console.show(
            "derived cache: what the codec of its source lost is not known here, so no token is "
            "called drifted"
        )
    if outcome.changed:
        console.show_table(
            f"{len(outcome.changed)} videos changed or gone",
            ("video", "how"),
            list(outcome.changed.items()),
        )
    if outcome.shifted:
        console.show(f"other times than cached: {console.few_text(outcome.shifted)}")
    if outcome.drifted:
        console.show(f"drifted: {console.few_text(outcome.drifted)}")


def _show_histogram(counts: list[int], edges: list[float]) -> None:
    """One line for each bin that stands between the first and the last with anything in it."""
    from pipeline.cli import console

    texts = [f"{edge:.0e}".replace("e-0", "e-") for edge in edges]
    names = [
        f"below {texts[0]}",
        *(f"{a} .. {b}" for a, b in pairwise(texts)),
        f"{texts[-1]} and more",
    ]
    filled = [index for index, count in enumerate(counts) if count]
    console.show("  1 - cosine")
    for index in range(filled[0], filled[-1] + 1):
        # A bin that is not empty shows at least one block.
        blocks = max(int(counts[index] > 0), round(BAR * counts[index] / max(counts)))
        console.show(f"  {names[index]:<14} {'█' * blocks} {counts[index]}")
