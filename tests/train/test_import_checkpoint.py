"""Released checkpoints become runs: files laid out as the released ones, made of the golden
weights, for all five tasks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.commands import assert_refused, call
from support.material import address_spec
from support.paths import GOLDEN

from pipeline.cache.cache import Cache
from pipeline.config import plugins
from pipeline.config.cache_spec import load_spec
from pipeline.config.recipe import Recipe
from pipeline.datasets.manifest import manifest
from pipeline.errors import BadInput
from pipeline.extract import extract
from pipeline.train.evaluate import evaluate
from pipeline.train.loop import train
from pipeline.train.run import Run, load_model
from pipeline.train.stream import Stream
from pipeline.train.weights.import_checkpoint import import_checkpoint, read_labels, read_weights

CLASSES = ("turn", "close", "open", "push", "pull", "lift", "drop")
"""In the order of the checkpoint's outputs, which is not the alphabet's."""
ENCODER = {
    "name": "transformers",
    "layers": [0, 1, 2, 3],
    "seed": 0,
    "config": {
        "model_type": "dinov3_vit",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_register_tokens": 4,
        "patch_size": 16,
        "image_size": 64,
    },
}
"""Four layers of 16 patches, CLS and four registers, 32 wide: what the golden files were made
with."""
TEMPORAL = {
    "gated_mamba_mix": {"layers": 2, "heads": 4},
    "gated_transformer": {"layers": 2, "heads": 4},
    "mamba": {"layers": 2},
    "mamba_mix": {"layers": 2, "heads": 4},
}
TASKS = {
    "classify": ({"readout_width": 48, "heads": 4}, "attention"),
    "boxes": ({"readout_width": 64, "heads": 4, "hidden": 32}, "boxes"),
    "points": ({"readout_width": 64, "heads": 8, "hidden": 32}, "points"),
    "depth": ({"readout_width": 64, "heads": 4, "size_px": 32}, "depth"),
    "pose": ({"readout_width": 64, "hidden": 32}, "pose"),
}


def golden(name: str) -> dict[str, torch.Tensor]:
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    return {
        key.removeprefix("weights/"): tensor
        for key, tensor in tensors.items()
        if key.startswith("weights/")
    }


def state_dict(task: str, temporal: str) -> dict[str, torch.Tensor]:
    """Names as in a released file."""
    readout = {
        (f"readout.{key}" if task == "classify" else key): t
        for key, t in golden(f"readout_{TASKS[task][1]}_streaming").items()
    }
    parts = {
        "encoder.interm_mlps.": golden("layer_mixer"),
        "sequential_core.": golden(temporal),
        "": readout,
    }
    named = {
        f"model.{part}{key}": tensor
        for part, tensors in parts.items()
        for key, tensor in tensors.items()
    }
    return named | {"loss_fn.log_sigma_t": torch.zeros(())}


def lightning(path: Path, state: dict[str, torch.Tensor]) -> Path:
    torch.save(
        {
            "epoch": 3,
            "global_step": 40_000,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": state,
            "loops": {},
        },
        path,
    )
    return path


def recipe(task: str, temporal: str = "gated_mamba_mix", **changes: object) -> Recipe:
    forms = {} if task == "pose" else {"forms": ["streaming"]}
    table = {
        "name": "released",
        "task": {"name": task, **TASKS[task][0], **forms},
        "temporal": {"name": temporal, **TEMPORAL[temporal]},
        "windows": {"frames": 4, "fps": 6},
        "training": {"steps": 1},
    }
    return plugins.validate(Recipe, table | changes, "test")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Cache:
    world = {"clips_per_class": 2, "frames": 8, "size_px": 64, "val_fraction": 0.5}
    built = manifest.build("world", None, tmp_path_factory.mktemp("world"), world)
    spec = address_spec(
        encoder=ENCODER, frames={"size_px": 64, "fps": 12.0}, store={"shard_mb": 1, "store_mb": 4}
    )
    return extract.extract(spec, built, tmp_path_factory.mktemp("cache"))


def test_a_released_checkpoint_begins_a_training_of_another_task(cache, tmp_path):
    file = lightning(tmp_path / "released.ckpt", state_dict("classify", "mamba"))
    released = import_checkpoint(
        file, recipe("classify", "mamba"), cache, tmp_path / "released", CLASSES
    )
    wanted = recipe(
        "pose",
        "mamba",
        training={"steps": 1, "batch_size": 2},
        init={"run": str(released.path), "frozen": True},
    )
    said = []
    run = train(wanted, cache, tmp_path / "run", say=said.append)
    for part, weights in (("mixer", golden("layer_mixer")), ("temporal", golden("mamba"))):
        for name, tensor in weights.items():
            assert torch.equal(run.tensors("last")[f"model.{part}.{name}"], tensor), name
    assert run.header.init.parts == ("mixer", "temporal") and run.header.init.step == 0
    assert any("it is not known which videos" in line for line in said)


@pytest.mark.parametrize("temporal", TEMPORAL)
@pytest.mark.parametrize("task", TASKS)
@torch.no_grad()
def test_every_weight_lands_in_its_place(cache, tmp_path, task, temporal):
    file = lightning(tmp_path / "released.ckpt", state_dict(task, temporal))
    run = import_checkpoint(
        file,
        recipe(task, temporal),
        cache,
        tmp_path / "run",
        CLASSES if task == "classify" else None,
    )
    model, _ = load_model(run, cache.shape)
    x = torch.randn(1, 3, 21, 32, generator=torch.Generator().manual_seed(0))
    plugin = plugins.load("temporal", temporal)
    alone = plugin(32, plugin.Settings(**TEMPORAL[temporal])).eval()
    alone.load_state_dict(golden(temporal))
    assert torch.equal(model.temporal(x)[0], alone(x)[0])
    assert all(
        torch.equal(tensor, golden("layer_mixer")[key])
        for key, tensor in model.mixer.state_dict().items()
    )
    readout = model.streaming.state_dict()
    for key, tensor in golden(f"readout_{TASKS[task][1]}_streaming").items():
        expected = (
            tensor[[CLASSES.index(name) for name in sorted(CLASSES)]]
            if key.startswith("classifier.")
            else tensor
        )
        assert torch.equal(readout[key], expected), key
    assert run.checkpoint("last").step == 0 and run.header.manifest is None


@pytest.mark.parametrize("task", [task for task in TASKS if task != "classify"])
def test_an_imported_run_is_scored_and_followed(cache, tmp_path, task):
    """The world knows boxes, points, depth and poses; its labels are not those of the
    checkpoint."""
    file = lightning(tmp_path / "released.ckpt", state_dict(task, "gated_mamba_mix"))
    recipe_file = tmp_path / "recipe.toml"
    recipe_file.write_text(_toml(recipe(task).canonical()))
    result = call("import-checkpoint", file, recipe_file, cache.path, "--out", tmp_path / "run")
    assert result.code == 0 and result.out.startswith(f"{tmp_path}/run: parameters of mixer 17,"), (
        result
    )
    facts = call("evaluate", tmp_path / "run", "--json").json
    assert facts["clips_scored"] == 8 and set(facts["forms"]) == {"streaming"}
    assert all(np.isfinite(score["score"]) for score in facts["forms"]["streaming"].values())
    clip = cache.manifest.clips[0]
    query = {
        "boxes": '{"boxes": [[0.3, 0.3, 0.6, 0.6]]}',
        "points": '{"points": [[0.5, 0.5], [0.2, 0.7]]}',
    }.get(task)
    asked = () if query is None else ("--query", query)
    result = call(
        "stream",
        tmp_path / "run",
        cache.manifest.root / clip.source,
        *asked,
        "--draw",
        tmp_path / "drawn.mp4",
    )
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert result.code == 0 and [line["time_s"] for line in lines] == pytest.approx(
        [0, 1 / 6, 2 / 6, 3 / 6], abs=1e-3
    )
    assert (tmp_path / "drawn.mp4").stat().st_size > 1000
    if query:
        assert_refused(
            call("stream", tmp_path / "run", cache.manifest.root / clip.source),
            f"query of task '{task}'",
            task,
        )
        far = (
            query.replace("0.3", "1.3").replace("0.6", "1.6")
            if task == "boxes"
            else '{"points": [[0.5, 1.5]]}'
        )
        result = call("stream", tmp_path / "run", cache.manifest.root / clip.source, "--query", far)
        assert_refused(result, f"1 of 1 {task} lie outside of what the model sees")


def test_a_spec_is_enough_to_follow_a_video(cache, tmp_path):
    spec_file = tmp_path / "spec.toml"
    spec_file.write_text(_toml(cache.spec))
    file = lightning(tmp_path / "released.ckpt", state_dict("classify", "gated_transformer"))
    labels = {name: str(number) for number, name in enumerate(CLASSES)}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    run = import_checkpoint(
        file,
        recipe("classify", "gated_transformer"),
        load_spec(spec_file),
        tmp_path / "run",
        read_labels(tmp_path / "labels.json"),
    )
    assert run.header.cache.fingerprint == cache.fingerprint and run.header.cache_path is None
    assert run.header.labels == tuple(sorted(CLASSES))
    from_cache = import_checkpoint(
        file, recipe("classify", "gated_transformer"), cache, tmp_path / "other", CLASSES
    )
    video = cache.manifest.root / cache.manifest.clips[0].source
    for a, b in zip(Stream(run).follow(video), Stream(from_cache).follow(video), strict=True):
        assert np.array_equal(a.answer, b.answer)
    assert_refused(call("evaluate", run.path), f"{run.path} knows no cache here", "--cache CACHE")
    with pytest.raises(BadInput, match="knows the labels close, drop, lift, open, pull and 2 more"):
        evaluate(run, cache)


def test_all_that_does_not_fit_is_listed(cache, tmp_path):
    state = state_dict("pose", "gated_mamba_mix")
    del state["model.pose_head.0.weight"]
    state["model.pose_head.3.bias"] = torch.zeros(7)
    state["model.surplus"] = torch.zeros(1)
    with pytest.raises(BadInput) as error:
        import_checkpoint(
            lightning(tmp_path / "a.ckpt", state), recipe("pose"), cache, tmp_path / "run"
        )
    assert "does not fit the recipe, 3 of " in error.value.message
    for part in (
        "pose_head.0.weight is missing",
        "surplus has no place",
        "pose_head.3.bias is (7,), wanted (9,)",
    ):
        assert f"readouts.streaming.{part}" in error.value.message
    assert not (tmp_path / "run").exists()
    with pytest.raises(BadInput, match=r"temporal\.gates\.0\.weight has no place.*") as error:
        import_checkpoint(
            lightning(tmp_path / "b.ckpt", state_dict("pose", "gated_mamba_mix")),
            recipe("pose", "gated_transformer"),
            cache,
            tmp_path / "run",
        )
    assert (
        error.value.message.count(" is missing") == len(golden("gated_transformer")) - 2
    )  # output_norm is in both


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    (tmp_path / "zip.ckpt").write_bytes(b"PK\x03\x04" + bytes(100))
    (tmp_path / "empty.ckpt").write_bytes(b"")
    (tmp_path / "folder.ckpt").mkdir()
    os.mkfifo(tmp_path / "fifo.ckpt")
    for name in ("text", "zip", "empty", "folder", "fifo"):
        with pytest.raises(BadInput, match="cannot be read as plain tensors") as error:
            read_weights(tmp_path / f"{name}.ckpt")
        assert "\n" not in error.value.message and "weights_only" not in error.value.message
    with pytest.raises(BadInput, match="No such file"):
        read_weights(tmp_path / "gone.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(BadInput, match="holds no state dict of tensors"):
        read_weights(tmp_path / "list.ckpt")


def test_a_checkpoint_with_the_frozen_encoder_and_without_constants_is_read(cache, tmp_path):
    """As the loader of the paper's code takes them; what was left out and filled in is said."""
    state = state_dict("boxes", "gated_mamba_mix")
    exact = import_checkpoint(
        lightning(tmp_path / "exact.ckpt", dict(state)), recipe("boxes"), cache, tmp_path / "exact"
    )
    del state["model.bbox_query_encoder.fourier_enc.freqs"]
    for name in [name for name in state if name.endswith("num_batches_tracked")]:
        del state[name]
    state["model.encoder.backbone.cls_token"] = torch.full((1, 1, 32), torch.nan)
    state["model.encoder.backbone.blocks.0.norm1.weight"] = torch.zeros(32)
    recipe_file = tmp_path / "recipe.toml"
    recipe_file.write_text(_toml(recipe("boxes").canonical()))
    file = lightning(tmp_path / "whole.ckpt", state)
    result = call("import-checkpoint", file, recipe_file, cache.path, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert "left out: 2 tensors of the frozen encoder (encoder.backbone.cls_token" in result.err
    assert "filled in: readouts.streaming.bbox_query_encoder.fourier_enc.freqs" in result.err
    ours, theirs = (
        load_model(run, cache.shape)[0].state_dict() for run in (Run(tmp_path / "run"), exact)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if "tracked" not in name)


def test_weights_that_share_their_numbers_in_the_file_become_weights_of_their_own(cache, tmp_path):
    state = state_dict("pose", "mamba")
    one, other = (f"model.encoder.interm_mlps.{layer}.mlp.0.weight" for layer in (0, 1))
    state[other] = state[one]
    file = lightning(tmp_path / "a.ckpt", state)
    run = import_checkpoint(file, recipe("pose", "mamba"), cache, tmp_path / "run")
    mixer = load_model(run, cache.shape)[0].mixer.state_dict()
    assert torch.equal(mixer["0.mlp.0.weight"], mixer["1.mlp.0.weight"])


def test_a_checkpoint_without_running_statistics_is_refused(cache, tmp_path):
    """Mean 0 and variance 1 in their place would answer, and wrongly."""
    state = state_dict("pose", "mamba")
    for name in [name for name in state if "running_" in name]:
        del state[name]
    file = lightning(tmp_path / "a.ckpt", state)
    with pytest.raises(BadInput, match="lacks 8 running statistics of batch norms") as error:
        import_checkpoint(file, recipe("pose", "mamba"), cache, tmp_path / "run")
    assert "the first is mixer.0.bn.running_mean" in error.value.message
    assert "state_dict()" in error.value.hint and not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_weights_that_are_no_numbers_are_refused_by_name(cache, tmp_path, value):
    state = state_dict("pose", "mamba")
    name = "running_var" if value == -1 else "mlp.0.weight"
    state[f"model.encoder.interm_mlps.1.{name.replace('running', 'bn.running')}"].view(-1)[3] = (
        value
    )
    file = lightning(tmp_path / "a.ckpt", state)
    with pytest.raises(BadInput, match=rf"1 of \d+ tensors hold NaN, .*: mixer\.1\..*{name}$"):
        import_checkpoint(file, recipe("pose", "mamba"), cache, tmp_path / "run")


def test_whole_numbers_are_no_weights(cache, tmp_path):
    """Quantised weights that would be read as numbers."""
    state = state_dict("pose", "mamba")
    state["model.pose_head.1.weight"] = state["model.pose_head.1.weight"].to(torch.int8)
    file = lightning(tmp_path / "a.ckpt", state)
    with pytest.raises(BadInput, match=r"pose_head\.1\.weight holds int8, wanted numbers"):
        import_checkpoint(file, recipe("pose", "mamba"), cache, tmp_path / "run")


def test_labels_are_asked_for_and_checked(cache, tmp_path):
    file = lightning(tmp_path / "a.ckpt", state_dict("classify", "mamba"))
    with pytest.raises(BadInput, match="needs the names of the classes") as error:
        import_checkpoint(file, recipe("classify", "mamba"), cache, tmp_path / "run")
    assert "--labels" in error.value.hint
    with pytest.raises(BadInput, match=r"classifier.weight is \(7, 48\), wanted \(6, 48\)"):
        import_checkpoint(file, recipe("classify", "mamba"), cache, tmp_path / "run", CLASSES[:6])
    (tmp_path / "names.txt").write_text("b\na\n\nc\n")
    assert read_labels(tmp_path / "names.txt") == ["b", "a", "c"]
    for text, problem in (
        ('{"a": 0, "b": 2}', "wanted the numbers 0 to 1"),
        ("a\na\n", "2 of which 1 differ"),
        ("[]", "found 0"),
        ('{"a": [], "b": 1}', "a value that is no number"),
        ('{"a": "x"}', "a value that is no number"),
        ('{"a": 1e999}', "a value that is no number"),
    ):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(BadInput, match=problem):
            read_labels(tmp_path / "bad")


def _toml(table: dict, prefix: str = "") -> str:
    """Enough TOML for a recipe or a spec."""
    plain = {
        key: value
        for key, value in table.items()
        if not isinstance(value, dict) and value is not None
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += [f"[{prefix}{key}]", _toml(value, f"{prefix}{key}.")]
    return "\n".join(lines)
