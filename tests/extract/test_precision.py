"""The encoder's precision left to the device: what it becomes is written down, and what it costs is told."""

from __future__ import annotations

import json

import pytest
import torch
from support.commands import VIT, assert_refused, call, fine

from pipeline.cache.cache import Cache
from pipeline.device import native_precision
from pipeline.models.encoders import contract


def spec_of(tmp_path, precision):
    file = tmp_path / "vit.toml"
    file.write_text(
        VIT.replace("[0, 7]", "[0, 1]").replace(
            "seed = 0\n", f'seed = 0\nprecision = "{precision}"\n'
        )
    )
    return file


@pytest.mark.parametrize("native", ["bfloat16", "float32"])
def test_auto_becomes_what_the_device_is_made_for(built, tmp_path, monkeypatch, native):
    monkeypatch.setattr(contract, "native_precision", lambda _: native)
    asked = spec_of(tmp_path, "auto")
    made = call("extract", asked, built.folder, "--out", tmp_path / "caches")
    assert made.code == 0, made
    assert f"vit: encoder.precision is {native}, which this machine's cpu is made for" in made.err
    (path,) = (tmp_path / "caches").iterdir()
    cache = Cache(path)
    assert cache.spec["encoder"]["precision"] == cache.header.encoder["precision"] == native
    # It is the cache of the spec that says so outright, on every machine.
    monkeypatch.setattr(contract, "native_precision", lambda _: "float16")
    compared = json.loads(call("diff", asked, path, "--json").out)
    assert compared["verdict"] == "same"
    again = fine("extract", spec_of(tmp_path, native), built.folder, "--out", tmp_path / "caches")
    assert str(path) in again.out and len(list((tmp_path / "caches").iterdir())) == 1


def test_a_spot_check_says_what_a_precision_costs(built, tmp_path):
    spec = spec_of(tmp_path, "bfloat16")
    fine("extract", spec, built.folder, "--out", tmp_path / "caches")
    (path,) = (tmp_path / "caches").iterdir()
    own = call("spot-check", path, "--fraction", 1, "--json").json
    other = call("spot-check", path, "--fraction", 1, "--precision", "float32", "--json").json
    assert own["judged"] and own["drifted"] == []
    assert not other["judged"] and other["drifted"] == []
    for name, array in other["arrays"].items():
        assert 0.99 < array["min"] < own["arrays"][name]["min"]
    said = call("spot-check", path, "--fraction", 1, "--precision", "float32")
    assert said.code == 0 and "encoded in float32, so no token is called drifted" in said.out
    refused = call("spot-check", path, "--precision", "float8")
    assert_refused(refused, "precision", "float8")


def test_a_precision_is_asked_of_the_hardware():
    assert native_precision(torch.device("cpu")) in ("float32", "bfloat16")
    assert native_precision(torch.device("meta")) == "float32"
