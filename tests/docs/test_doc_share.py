"""The page on sharing, taken as it stands, against a server that speaks the hub's protocol."""

from __future__ import annotations

import shutil

import pytest
from support.commands import call
from support.manual import ROOT, blocks, lines

from pipeline.train.library.token_cache import TokenCache
from pipeline.train.library.trained_model import TrainedModel

PAGE = ROOT / "docs/guide/share.md"


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_the_page_is_taken_line_by_line(hub, place, tmp_path, monkeypatch):
    desk = tmp_path / "desk"
    shutil.copytree(place.run, desk / "runs/demo_gru")
    shutil.copytree(place.cache, desk / "caches/NAME")
    monkeypatch.chdir(desk)
    taken = []
    for line in lines(PAGE):
        arguments = [word.replace("/user/", "/me/") for word in line.arguments or []]
        result = call(*arguments)
        assert result.code == 0, (str(line), result)
        taken.append(arguments[0])
    assert taken == ["push", "push", "pull", "pull", "evaluate", "push"]
    (code,) = blocks(PAGE, "python")
    names: dict[str, object] = {}
    exec(compile(code.replace("/user/", "/me/"), PAGE.name, "exec"), names)
    assert isinstance(names["model"], TrainedModel) and isinstance(names["cache"], TokenCache)
