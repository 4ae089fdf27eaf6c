"""The names of `import stillframe`: what is public is listed, lazily imported, and typed."""

from __future__ import annotations

import ast
import importlib
import inspect
import operator
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

import stillframe

TREE = ast.parse(Path(stillframe.__file__).read_text(encoding="utf-8"))


def typed_names() -> dict[str, str]:
    """What a type checker sees: public name -> its module."""
    (block,) = [node for node in TREE.body if isinstance(node, ast.If)]
    return {
        alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_what_is_listed_is_what_is_there_and_what_type_checkers_see():
    assert typed_names() == stillframe._MODULES
    assert dir(stillframe) == stillframe.__all__ == sorted(stillframe.__all__)
    assert set(stillframe.__all__) == {*stillframe._MODULES, "__version__"}
    for name, module in stillframe._MODULES.items():
        value = getattr(stillframe, name)
        assert value is getattr(importlib.import_module(module), name)
        assert value.__module__ == module and len(value.__doc__) > 30
    with pytest.raises(AttributeError, match="module 'stillframe' has no attribute 'Cash'"):
        _ = stillframe.Cash


@pytest.mark.parametrize("package", ["stillframe", "pipeline"])
def test_types_are_for_others_too(package):
    assert (ROOT / package / "py.typed").read_text() == ""


def test_importing_it_imports_nothing_heavy(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import stillframe; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded & {"numpy", "torch", "pydantic", "zarr", "transformers"} == set()


SIGNATURES = {
    "add_plugins": "(path)",
    "evaluate": "(run, cache=None, split='val', *, checkpoint='last', manifest=None, device=None, allow_missing=False)",
    "extract": "(spec, manifest, out='caches', *, device=None, decoders=1)",
    "load_manifest": "(folder, root=None)",
    "load_recipe": "(recipe, changes=())",
    "load_run": "(path, checkpoint='last', device='cpu')",
    "load_spec": "(spec, changes=())",
    "make_manifest": "(dataset, root=None, *, out, **settings)",
    "open_cache": "(path)",
    "open_encoder": "(source, *, device=None, encoder=None)",
    "open_stream": "(run, *, device=None, encoder=None, ask=())",
    "train": "(recipe, cache, out=None, changes=(), *, manifest=None, device=None, allow_missing=False, follow=False)",
    "FrameEncoder.__call__": "(self, pixels_FHWC, pixel_aspect=1.0)",
    "FrameEncoder.video": "(self, path, image_fps=None)",
    "Stream.answers_per_second": "(self, source_fps=None)",
    "Stream.drawn": "(self, seen)",
    "Stream.follow": "(self, path, asked=None, start_s=0.0, image_fps=None)",
    "Stream.is_due": "(self, time_s)",
    "Stream.plain": "(self, answer, seen)",
    "Stream.reset": "(self, asked=None, fps=None)",
    "Stream.step": "(self, pixels_HWC, time_s, pixel_aspect=1.0)",
    "TokenCache.read": "(self, clip, layer=None, view='base', truth=None, allow_missing=False)",
    "TrainedModel.answers": "(self, batch)",
    "TrainedModel.features": "(self, batch)",
    "TrainedModel.forward": "(self, batch)",
    "WindowDataset.__init__": "(self, cache, split='train', *, batch_size=8, recipe=None, truth=(), layers=None, manifest=None, device='cpu', allow_missing=False, **settings)",
    "WindowDataset.load_state_dict": "(self, state)",
    "WindowDataset.state_dict": "(self)",
}
"""A change here is one that programs of others must be told of: in CHANGELOG.md, under Changed."""
FIELDS = {
    "ClipTokens": "clip special_TSD patches grid_hw time_s_T affine_T23 truth texts",
    "FrameTokens": "special_FSD patches time_s_F affine_F23",
    "Seen": "time_s pixels_HWC affine_23 answer told ahead",
    "WindowBatch": "special_BTSD patches targets time_s_BT clip_ids",
}


def plain_signature(name: str) -> str:
    signature = inspect.signature(operator.attrgetter(name)(stillframe))
    bare = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def test_signatures_and_fields_are_those_that_were_promised():
    assert {name: plain_signature(name) for name in SIGNATURES} == SIGNATURES
    functions = {
        name for name in stillframe.__all__ if inspect.isfunction(getattr(stillframe, name))
    }
    assert functions == {name for name in SIGNATURES if "." not in name}
    assert {
        name: " ".join(inspect.get_annotations(getattr(stillframe, name))) for name in FIELDS
    } == FIELDS
