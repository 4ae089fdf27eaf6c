"""The measurements: figures that fit together, whatever the machine is busy with."""

from __future__ import annotations

import gc
import re
import statistics
import subprocess
import sys

import pytest
import torch
from support.commands import assert_refused, call
from support.material import THREADS
from support.modules import PRODUCTS_ALONE
from torch import nn
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from pipeline.cli.bench import memory, references, temporal
from pipeline.config import plugins
from pipeline.models.temporal.contract import TemporalModule

CPU = torch.device("cpu")
NAMES = plugins.names("temporal")
PASSES = {"forward": 1, "forward_backward": 3}
TINY = [
    "--batch=2",
    "--frames=3",
    "--tokens=5",
    "--width=32",
    "--stream-frames=300",
    "--stream-tokens=2",
]
linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak on a CPU is read from /proc")


@pytest.fixture(scope="module")
def whole():
    """The whole command, as data."""
    result = call("bench", "temporal", *TINY, "--json")
    assert result.code == 0, result
    gc.freeze()  # again
    return result.json


@pytest.mark.slow
def test_says_what_was_measured_and_where(whole):
    assert whole["size"] == {"batch": 2, "frames": 3, "tokens": 5, "width": 32, "layers": 1}
    assert whole["streams"] == {"frames": 300, "tokens": 2}
    assert whole["surroundings"] | {"threads": THREADS} == temporal.surroundings(CPU)


def test_surroundings(monkeypatch):
    torch.set_num_threads(1)
    around = temporal.surroundings(CPU)
    assert (around["threads"], around["torch"]) == (1, torch.__version__)
    assert around["device"]
    for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    assert temporal.surroundings(CPU)["allocator"] == "default"
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "0")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1")
    assert (
        temporal.surroundings(CPU)["allocator"]
        == "GLIBC_TUNABLES=glibc.malloc.trim_threshold=1 MALLOC_MMAP_MAX_=0"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_module_is_there_and_its_figures_fit_together(whole, name):
    assert list(whole["modules"]) == NAMES
    facts, module = whole["modules"][name], temporal.make_module(name, 32, layers=1)
    assert facts["parameters"] == sum(part.numel() for part in module.parameters())
    assert facts["state_bytes"] == module.state_bytes(5)
    assert facts["flops"] == module.flops(3, 5)
    assert (
        facts["flops_measured"]
        == temporal.products(module, torch.randn(1, 3, 5, 32))
        <= facts["flops"]
    )
    for each, share in PASSES.items():
        figures = facts[each]
        check_times(figures, whole["repeats"])
        assert figures["flop_per_s"] == pytest.approx(
            share * 2 * facts["flops"] / figures["median_s"]
        )
    stream = facts["stream"]
    assert stream["frames_per_s"] > 0
    assert stream["last_over_first"] == statistics.median(
        b / a for a, b in zip(stream["first_s"], stream["last_s"], strict=True)
    )
    assert stream["grown_bytes"] == 0


def check_times(figures, repeats):
    times = figures["s"]
    assert len(times) == repeats and min(times) > 0
    assert (figures["min_s"], figures["median_s"], figures["max_s"]) == (
        min(times),
        statistics.median(times),
        max(times),
    )


@pytest.mark.slow
def test_mamba_is_compared_with_transformers(whole):
    result = whole["mamba"]
    ours, theirs = result["stillframe"], result["transformers"]
    for each in PASSES:
        check_times(ours[each], whole["repeats"])
        check_times(theirs[each], whole["repeats"])
        pairs = zip(theirs[each]["s"], ours[each]["s"], strict=True)
        assert result["ratios"][each]["time"] == statistics.median(a / b for a, b in pairs)
        peaks = theirs[each]["peak_bytes"], ours[each]["peak_bytes"]
        if all(peaks):
            assert result["ratios"][each]["peak"] == peaks[0] / peaks[1]
    assert result["output_difference"] < 1e-5
    assert result["gradient_difference"] < 1e-5
    assert "gated_mamba_mix" not in whole  # its reference needs CUDA


def test_a_mamba_that_is_not_the_same_shows(monkeypatch):
    """The difference is of what ran, not of the weights alone."""
    layer = temporal.make_module("mamba", 16, layers=1).mamba_blocks[0].mamba
    x, grad = torch.randn(2, 4, 3, 16), torch.randn(2, 4, 3, 16)
    forward = type(layer).forward
    monkeypatch.setattr(
        type(layer), "forward", lambda self, *args: (forward(self, *args)[0] * 1.01, None)
    )
    result = references.against_transformers(layer, x, grad, 1, lambda *_: None)
    assert result["output_difference"] > 1e-5
    assert result["gradient_difference"] == pytest.approx(0.01, rel=0.1)


def test_the_published_composition_with_the_same_weights_is_the_same_module():
    """Here with the layers of transformers, whose weights bear the names of those of mamba_ssm."""

    def published(d_model: int, d_state: int, d_conv: int, expand: int) -> nn.Module:
        config = MambaConfig(
            hidden_size=d_model,
            state_size=d_state,
            conv_kernel=d_conv,
            expand=expand,
            num_hidden_layers=1,
        )
        return MambaMixer(config, layer_idx=0)

    module = temporal.make_module("gated_mamba_mix", 32, layers=2).eval()
    composed = references._composed(module, published).eval()
    x = torch.randn(2, 4, 3, 32)
    assert isinstance(composed.mamba_blocks[1].mamba.mixer, MambaMixer)
    torch.testing.assert_close(composed(x)[0], module(x)[0], atol=1e-5, rtol=0)


def test_without_mamba_ssm_ours_is_measured_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    monkeypatch.setattr(references, "PEAK_SIDE", 64)
    x, grad = torch.randn(2, 4, 3, 32), torch.randn(2, 4, 3, 32)
    module = temporal.make_module("gated_mamba_mix", 32, layers=1)
    result = references.against_kernels(module, x, grad, 2, lambda *_: None)
    assert result.keys() == {"stillframe", "missing", "matrix_peak_flop_per_s"}
    assert result["missing"].startswith("ModuleNotFoundError: ")
    for each, share in PASSES.items():
        figures = result["stillframe"][each]
        check_times(figures, 2)
        assert figures["flop_per_s"] == pytest.approx(
            share * 2 * module.flops(4, 3) / figures["median_s"]
        )
        assert (
            figures["share_of_matrix_peak"]
            == figures["flop_per_s"] / result["matrix_peak_flop_per_s"]
        )


@pytest.mark.parametrize("name", NAMES)
def test_the_formula_counts_the_products_that_run(name):
    """What the counter does not see, convolutions by taps and recurrences, makes the rest."""
    module = temporal.make_module(name, 256, layers=1)
    measured, formula = temporal.products(module, torch.randn(1, 2, 5, 256)), module.flops(2, 5)
    assert measured <= formula
    if name in PRODUCTS_ALONE:
        assert 0.9 * formula <= measured
    if name in ("causal_attention", "gated_transformer", "gru", "min_gru"):
        assert measured >= 0.99 * formula


@pytest.mark.parametrize("name", NAMES)
def test_any_width_and_depth_will_do(name):
    module = temporal.make_module(name, 10, layers=3)
    assert getattr(module.settings, "layers", 3) == 3
    assert 10 % (getattr(module.settings, "heads", None) or 1) == 0
    assert module(torch.randn(1, 2, 3, 10))[0].shape == (1, 2, 3, 10)


@linux
def test_peaks_grow_with_the_batch():
    def peaks(batch: int) -> list[int]:
        streams = temporal.Streams(300, 1)
        found = temporal.modules(
            ["gru"], temporal.Size(batch, 8, 64, 128, 1), streams, 1, CPU, lambda *_: None
        )
        return [found["gru"][each]["peak_bytes"] for each in PASSES]

    small, large = peaks(2), peaks(8)
    assert min(small) > 4 * 2 * 8 * 64 * 128  # the output at least
    assert small[0] < small[1] and large[0] < large[1]
    assert all(2 < b / a < 6 for a, b in zip(small, large, strict=True))


PEAKS = """
import torch
from pipeline.cli.bench.memory import peak_bytes

cpu, numbers = torch.device("cpu"), 64 * 2**18
torch.ones(numbers)
for call in (
    lambda: torch.ones(numbers),
    lambda: torch.ones(2 * numbers),
    lambda: [torch.ones(numbers).sum() for _ in range(3)],
    lambda: None,
):
    print(peak_bytes(call, cpu) / 2**20)
"""


@linux
def test_a_peak_is_what_was_held_at_once_and_no_more():
    """In a process of its own: what many tests have left in an allocator serves such blocks from
    several places at once."""
    lines = subprocess.run(
        [sys.executable, "-c", PEAKS], check=True, capture_output=True, text=True
    ).stdout.split()
    one, two, one_after_another, nothing = map(float, lines)
    assert one == pytest.approx(64, abs=4)
    assert two == pytest.approx(128, abs=4)
    assert one_after_another < 1.5 * 64
    assert nothing < 4


def test_live_bytes_are_those_of_tensors_that_can_be_reached():
    before = memory.live_bytes(CPU)
    kept = torch.ones(1000)
    views = [kept[:10], kept.view(10, 100)]
    assert memory.live_bytes(CPU) - before == 4000
    del kept, views
    assert memory.live_bytes(CPU) == before


class Hoarder(TemporalModule):
    """Keeps every frame that it ever saw, and goes through all of them at every frame."""

    Settings = plugins.Settings

    def __init__(self, width: int) -> None:
        super().__init__(width, None)
        self.scale = nn.Parameter(torch.ones(width))
        self.kept: list[torch.Tensor] = []

    def _run(self, x_BTND, state):
        self.kept.append(x_BTND.clone())
        return self.scale * torch.stack([part.sum() for part in self.kept]).mean() + x_BTND, ()

    def state_shapes(self, tokens):
        return ()

    def flops(self, frames, tokens):
        return 0


def test_a_module_that_grows_with_time_shows():
    found = temporal.measure_stream(Hoarder(4), 3, temporal.Streams(600, 2), CPU)
    assert found["grown_bytes"] == (600 - 200) * 4 * 2 * 4
    assert found["last_over_first"] > 1.5


def test_table_fits_and_names_what_was_asked_for():
    result = call(
        "bench",
        "temporal",
        *TINY,
        "--module",
        "gru",
        "--module",
        "identity",
        "--mamba",
        "--repeats",
        "1",
    )
    assert result.code == 0, result
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= 140
    assert lines[0] == "B=2 T=3 N=5 D=32, layers 1, 1 repeats"
    named = [
        line.split()[0]
        for line in lines
        if re.match(r" (gru|identity|stillframe|transformers) ", line)
    ]
    assert named == ["gru", "identity"] * 3 + ["stillframe", "transformers"]
    assert [line.partition(":")[0] for line in lines if line.startswith("transformers / ")] == [
        "transformers / stillframe, forward",
        "transformers / stillframe, fwd+bwd",
    ]
    headers = [line.split("  ") for line in lines if "fwd+bwd ms" in line]
    assert [len([cell for cell in header if cell]) for header in headers] == [
        9,
        8,
    ]  # none is folded
    assert lines[-1].startswith("largest difference: outputs ")


def test_only_what_is_asked_for_is_measured():
    one = call("bench", "temporal", *TINY, "--module", "gru", "--repeats", "1", "--json").json
    assert list(one["modules"]) == ["gru"] and "mamba" not in one
    reference = call("bench", "temporal", *TINY, "--mamba", "--repeats", "1", "--json").json
    assert "modules" not in reference and reference["mamba"]["output_difference"] < 1e-5


def test_wrong_input():
    assert_refused(
        call("bench", "temporal", "--module", "grru"),
        "no temporal called 'grru'",
        "did you mean 'gru'?",
    )
    assert_refused(call("bench", "temporal", "--module", "gru", "--stream-frames", "10"), "300")
    assert_refused(call("bench", "temporal", "--batch", "0"), "--batch")


def test_steps_of_forecasts_stand_beside_one_of_a_classification():
    small = ["--set", "training.batch_size=2", "--set", "model.width=8", "--grid", "2"]
    result = call("bench", "forecast", *small, "--width", "8", "--repeats", "1", "--json")
    assert result.code == 0, result
    steps = result.json["steps"]
    assert list(steps)[:3] == ["classify", "as in the recipe", "head attention"] and len(steps) == 8
    assert steps["classify"]["ratio"] == 1
    assert all(step["median_s"] > 0 and len(step["s"]) == 1 for step in steps.values())
    shown = call("bench", "forecast", *small, "--width", "8", "--repeats", "1").out.splitlines()
    assert shown[0] == "a step of 2 windows, medians of 1" and max(map(len, shown)) <= 80


def test_a_step_and_a_read_of_some_patches_stand_beside_those_of_all():
    small = ["--set", "training.batch_size=2", "--set", "windows.frames=3", "--grid", "4"]
    result = call("bench", "keep", *small, "--width", "8", "--repeats", "1", "--json")
    assert result.code == 0, result
    found = result.json
    assert found["tokens"] == {"all": 16, "kept": 4}
    assert found["batch_bytes"] == {"all": 2 * 3 * 16 * 8 * 2, "kept": 2 * 3 * 4 * 8 * 2}
    assert list(found["figures"]) == [
        "a training step",
        "reading, from memory",
        "reading, from the disk",
        "reading, compressed",
    ]
    for figure in found["figures"].values():
        whole, kept = figure["all"]["median_s"], figure["kept"]["median_s"]
        assert whole > 0 and figure["ratio"] == pytest.approx(kept / whole)
    shown = call("bench", "keep", *small, "--width", "8", "--repeats", "1", "--share", "0.5").out
    lines = shown.splitlines()
    assert lines[0] == "2 windows of 3 frames, medians of 1" and max(map(len, lines)) <= 80
    assert "16 patches" in shown and "8 patches" in shown and "0.50" in lines[-2]
    assert_refused(
        call("bench", "keep", "--recipe", "demo_depth"),
        "task 'depth' needs those of every place",
        "choose a task that asks for no place",
    )


def test_two_specs_are_extracted_in_turn():
    words = ("bench", "extract", "--spec=demo", "--frames=32", "--repeats=2")
    result = call(*words, "--against=encoder.precision=bfloat16", "--against=codec.name=int8")
    assert result.code == 0, result
    assert "with encoder.precision=bfloat16, codec.name=int8" in result.out
    found = call(*words, "--against", "codec.name=int8", "--json").json
    other = found["against"]
    for case in (found, other):
        assert len(case["ratios"]) == 2
        assert case["ratio"] == pytest.approx(statistics.mean(case["ratios"]))
        assert all(least <= median <= most for _, median, least, most in case["rows"])
    # Medians of two are means; speeds of rows are rounded.
    slow, fast = (case["rows"][1] for case in (found, other))
    assert fast[2] / slow[3] * 0.99 <= other["times"] <= fast[3] / slow[2] * 1.01
    assert "against" not in call(*words, "--json").json


def test_parts_of_an_extraction_are_told_apart():
    words = ("bench", "extract", "--parts", "--spec=demo", "--frames=32")
    found = call(*words, "--json").json
    assert list(found["core_ms"]) == ["decode", "resize", "encoder", "codec", "write"]
    assert found["core_ms"]["encoder"] > 0 and found["start_core_ms"] > 0
    assert found["core_ms"]["write"] > 0 and found["written_per_s"] > 0
    # Frames of the built-in world; 49 patches and CLS of width 64 in float16.
    assert (found["source_bytes"], found["stored_bytes"]) == (256 * 256 * 3, 50 * 64 * 2)
    # Four products of D x D and two of D x 128 for a token, in two layers; attention besides.
    assert found["flops"] > 2 * 50 * 2 * (4 * 64 * 64 + 2 * 64 * 128)
    shown = call(*words).out
    assert all(part in shown for part in found["core_ms"]) and "196.6 kB decoded" in shown
    assert "a worker that did nothing but write would write" in shown


def test_a_step_from_a_cache_stands_beside_one_on_resident_tokens(material):
    """Losses of both ways are equal: the tokens are."""
    small = ["--cache", material.cache.path, "--set", "training.batch_size=2"]
    small += ["--set", "windows.frames=3", "--steps", "2", "--repeats", "2"]
    found = call("bench", "step", *small, "--json").json
    assert found["size"]["windows"] == "2 x 3 frames" and found["size"]["codec"] == "float16"
    # Special tokens of the last layer, and the patches of that alone: the recipe reads no other.
    assert found["size"]["batch_bytes"] == 2 * 3 * (2 + 9) * 8 * 2
    assert found["equal"] and len(found["ratios"]) == 2
    assert all(len(found["steps"][way]["s"]) == 2 for way in ("cached", "resident"))
    parts = found["parts"]
    assert parts["resident"]["tokens"] < parts["cached"]["tokens"]
    assert all(seconds > 0 for seconds in found["alone"].values())
    lines = call("bench", "step", *small).out.splitlines()
    shown = "2 x 3 frames, 11 of 8 in float16, 1.1 kB a batch, "
    assert lines[0] == shown + f"cpu, {THREADS} threads"
    assert max(map(len, lines)) <= 90 and lines[-2].endswith("losses are equal")


def test_a_step_on_a_cache_of_the_built_in_world():
    small = ["--grid", "1", "--width", "32", "--codec", "int8", "--set", "training.batch_size=2"]
    found = call("bench", "step", *small, "--steps", "2", "--repeats", "1", "--json").json
    assert found["size"]["tokens"] == "2 of 32" and found["size"]["codec"] == "int8"
    # An int8 for each number and a float32 for each token.
    assert found["size"]["batch_bytes"] == 2 * 8 * 2 * (32 + 4)
