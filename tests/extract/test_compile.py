"""An encoder that is compiled: one compilation whatever the batches, tokens that differ in rounding, and a cache of its own."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
import torch.nn.functional as F
from support.on_device import BOTH, CPU, differ, named
from support.views import vit_spec

from pipeline.config.cache_spec import CacheSpec, choice, fingerprint
from pipeline.errors import BadInput
from pipeline.extract import extract
from pipeline.extract.upkeep.spot_check import spot_check
from pipeline.models.encoders.contract import make_encoder

# Of what torch.compile imports of torch itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
CXX = os.environ.get("CXX", "g++")
NEAR = {"cpu": 1e-5, "cuda": 1e-2}
"""Share of the largest token by which one may differ: on CUDA products in TF32 do."""
needs_compiler = pytest.mark.skipif(not shutil.which(CXX), reason=f"no C++ compiler {CXX}")


def spec_of(**settings: object) -> CacheSpec:
    spec = vit_spec([0, 2])
    return spec.model_copy(update={"encoder": choice("encoder", spec.encoder.table() | settings)})


def test_a_spec_that_does_not_compile_is_the_one_of_before_there_was_a_choice():
    plain = spec_of(compile=False)
    assert plain.canonical() == vit_spec([0, 2]).canonical()
    assert "compile" not in plain.canonical()["encoder"]
    assert fingerprint(plain, {"weights": "a"}, "pyav 1") == "c0052ee990c9"
    said = spec_of(compile=True)
    assert said.canonical()["encoder"]["compile"] is True
    identities = [make_encoder(spec, CPU).identity for spec in (plain, said)]
    assert identities[1] == identities[0] | {"compile": True} != identities[0]


@needs_compiler
@pytest.mark.slow
def test_tokens_differ_in_rounding_and_the_cache_is_another(built, tmp_path):
    ours = extract.extract(spec_of(), built, tmp_path, CPU)
    theirs = extract.extract(spec_of(compile=True), built, tmp_path, CPU)
    assert theirs.fingerprint != ours.fingerprint and theirs.header.encoder["compile"] is True
    assert not any(receipt.taken_from for receipt in theirs.receipts.values())
    assert spot_check(theirs, 1.0, device=CPU).is_sound


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH)
def test_a_batch_of_any_size_takes_the_one_compilation(name):
    device = named(name)
    torch.compiler.reset()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    plain, compiled = (make_encoder(spec_of(compile=on), device) for on in (False, True))
    compiled.prepare(5)
    pixels = torch.randint(0, 256, (13, 3, 32, 32), dtype=torch.uint8, device=device)
    wanted, found = plain(pixels), compiled(pixels)
    assert len(found) == 13
    for layer in (0, 2):
        ours_NPD, theirs_NPD = wanted.patches_NPD[layer], found.patches_NPD[layer]
        assert differ(theirs_NPD, ours_NPD) < NEAR[name]
        assert float(F.cosine_similarity(theirs_NPD, ours_NPD, -1).min()) > 1 - NEAR[name]
    # A frame's tokens do not depend on its batch, and a padded one is as good as a whole one.
    for first, last in ((0, 1), (3, 7), (5, 13)):
        some = compiled(pixels[first:last])
        assert torch.equal(some.patches_NPD[2], found.patches_NPD[2][first:last])
        assert torch.equal(some.special_NSD, found.special_NSD[first:last])
    # Of the tower, and of what is tried first.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs <= 2


def test_without_a_compiler_the_error_says_so_in_one_line(built, tmp_path, monkeypatch):
    torch.compiler.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "nothing is compiled yet"))
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(BadInput, match=r"encoder\.compile: .* for cpu here: .*C\+\+") as raised,
    ):
        extract.extract(spec_of(compile=True), built, tmp_path, CPU)
    assert "\n" not in raised.value.with_hint and "install a C++ compiler" in raised.value.hint
    assert not list(tmp_path.glob("*/stores/*"))
