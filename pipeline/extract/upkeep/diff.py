"""The difference between a spec and a cache, and its cost: nothing, a derivation, or encoding
again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch

from pipeline.cache.cache import Cache, neighbours
from pipeline.cache.codecs.contract import fitted_to, make_codec
from pipeline.cache.layout import bytes_per_frame
from pipeline.config import plugins
from pipeline.config.cache_spec import FORMAT_VERSION, CacheSpec, encoder_meaning, fingerprint
from pipeline.config.toml_tables import differences, differing
from pipeline.device import chosen
from pipeline.errors import BadInput
from pipeline.extract.derive import require_derivable
from pipeline.extract.extract import preview
from pipeline.models.encoders.contract import AUTO, make_encoder, settle, token_shape
from pipeline.video.on_device import identity_of_decoder

Verdict = Literal["same", "derivable", "new layers", "everything", "not known"]

Difference = tuple[str, Any, Any]
"""(field, in the spec, in the cache)"""


@dataclass(frozen=True)
class SpecDiff:
    """The fields in which a spec and a cache differ, and what that costs."""

    verdict: Verdict
    """same: it is that cache. derivable: from its tokens. new layers: it lacks no more than those.
    everything: all frames must be encoded again. not known: nothing differs, but the weights could
    not be compared."""
    differ: list[Difference]
    name: str | None
    """The cache that the spec asks for; None where the weights are not here."""
    command: str | None
    """The command of a derivation; None where there is none."""
    why_not: str
    """The reason against a derivation; empty where there is none."""
    new_layers: list[int]
    frames: int | None
    """Number of frames to be encoded or derived; None where the videos that would tell are not
    here."""
    store_bytes: int | None
    unknown: str
    """The reason why the weights could not be compared; empty where they were."""


def compare_spec(spec: CacheSpec, cache: Cache) -> SpecDiff:
    """Holds a spec against a cache. Reads the encoder's weights, where they can be had."""
    spec = _settled_as(spec, cache)
    identity, unknown = _identity(spec)
    differ = list(_differ(spec, cache, identity))
    digits = None
    if identity is not None:
        of_codec = fitted_to(make_codec(spec.codec), cache.header.manifest)
        digits = fingerprint(spec, identity, _decoder(spec), of_codec)
    fields = [field for field, _, _ in differ]
    layers, held = set(spec.encoder.settings.layers), set(cache.shape.layers)
    command, why_not = _derivation(spec, cache, differ)
    verdict: Verdict = "everything"
    if not differ:
        verdict = "same" if digits == cache.fingerprint else "not known"
    elif command:
        verdict = "derivable"
    elif fields == ["encoder.layers"] and held < layers:
        verdict = "new layers"
    frames, store_bytes = (0, 0) if not differ else _cost(spec, cache)
    return SpecDiff(
        verdict=verdict,
        differ=differ,
        name=f"{spec.name}-{digits}" if digits else None,
        command=command,
        why_not=why_not,
        new_layers=sorted(layers - held),
        frames=frames,
        store_bytes=store_bytes,
        unknown=unknown,
    )


def _settled_as(spec: CacheSpec, cache: Cache) -> CacheSpec:
    """A spec with what it leaves to the device as it was on the one that made the cache, where that
    is known."""
    if getattr(spec.encoder.settings, "precision", None) != AUTO:
        return spec
    of_cache = getattr(cache.cache_spec.encoder.settings, "precision", None)
    update = {} if of_cache is None else {"precision": of_cache}
    settings = spec.encoder.settings.model_copy(update=update)
    encoder = spec.encoder.model_copy(update={"settings": settings})
    return settle(spec.model_copy(update={"encoder": encoder}), chosen(None))


def _decoder(spec: CacheSpec) -> str:
    return identity_of_decoder(spec.frames.decoder, chosen(None))


def _identity(spec: CacheSpec) -> tuple[dict[str, Any] | None, str]:
    """The encoder's identity, or why it cannot be had."""
    try:
        identity = make_encoder(spec, torch.device("cpu")).identity
    except BadInput as error:
        return None, error.message
    return json.loads(json.dumps(identity)), ""


def _differ(spec: CacheSpec, cache: Cache, identity: dict[str, Any] | None) -> Iterator[Difference]:
    """Where both identities are known they alone are compared: from where an encoder was loaded
    says nothing."""
    header = cache.header
    ours, theirs = spec.canonical(), cache.cache_spec.canonical()
    if identity is not None:
        ours["encoder"], theirs["encoder"] = (
            encoder_meaning(table["encoder"], encoder_identity)
            for table, encoder_identity in ((ours, identity), (theirs, header.encoder))
        )
    ours |= {"decoder": _decoder(spec), "format_version": FORMAT_VERSION}
    theirs |= {
        "decoder": header.decoder,
        "format_version": header.format_version,
        "derived_from": header.derived_from,
    }
    yield from differing(ours, theirs)


def _derivation(
    spec: CacheSpec, cache: Cache, differ: Sequence[Difference]
) -> tuple[str | None, str]:
    """The command that derives what the spec asks for from the cache, or else what stands against
    it."""
    strange = [
        field
        for field, _, _ in differ
        if field.startswith(("encoder.identity", "encoder.name", "encoder.from", "decoder"))
    ]
    if strange:
        return None, f"its tokens come from another {strange[0].partition('.')[0]}"
    canonical = spec.canonical()
    table = canonical | {
        "encoder": cache.spec["encoder"] | {"layers": canonical["encoder"]["layers"]}
    }
    try:
        require_derivable(cache, plugins.validate(CacheSpec, table, "spec"))
    except BadInput as error:
        return None, error.message
    changed = {field for field, _, _ in differ}
    origin = f"codec.{plugins.FROM}"
    if any(field.startswith(("codec.name", origin)) for field in changed):
        # The settings of another codec are all said anew.
        changed |= {f"codec.{key}" for key in canonical["codec"]}
    changed = {field for field in changed if not field.startswith(origin)}
    sets = []
    for field in sorted(changed - {"derived_from", "format_version"}):
        value: Any = table
        for key in field.split("."):
            value = value.get(key) if value else None
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            sets.append(f"--set {shlex.quote(f'{field}={text}')}")
    if not sets and cache.header.format_version == FORMAT_VERSION:
        return None, ""
    words = ["stillframe derive", shlex.quote(str(cache)), "--out"]
    return " ".join([*words, shlex.quote(str(cache.storage.parent)), *sets]), ""


def _cost(spec: CacheSpec, cache: Cache) -> tuple[int | None, int | None]:
    """Frames and bytes of the cache that the spec asks for, over the same videos; None where what
    would tell is not here."""
    try:
        if spec.frames.kept != cache.cache_spec.frames.kept:
            planned = preview(spec, cache.manifest)
            return planned.frames, planned.store_bytes
        frames = sum(sum(videos.values()) for videos in cache.plan.values())
    except BadInput:
        return None, None
    try:
        return frames, frames * bytes_per_frame(spec, token_shape(spec))
    except BadInput:
        return frames, None


def siblings(cache: Cache) -> dict[str, list[str]]:
    """Names of caches of the same spec name and manifest beside this one -> in what they differ, as
    `field: this / that`."""

    def meaning(sibling: Cache) -> dict[str, Any]:
        """Everything that is compared, the keys among it that the cache's format did not have."""
        facts = sibling.header.model_dump(
            mode="json", include={"encoder", "decoder", "derived_from"}
        )
        return facts | {"spec": sibling.cache_spec.canonical()}

    differing_fields = {}
    for neighbour in neighbours(cache, f"{cache.spec['name']}-"):
        if not neighbour.has_videos_of(cache):
            continue
        with suppress(BadInput):  # its spec is none that this version knows
            differing_fields[neighbour.name] = differences(meaning(cache), meaning(neighbour))
    return {name: differ for name, differ in differing_fields.items() if differ}
