"""What a path, a URL or a run may lead to: nothing that the user has not named, and no secret in a message."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
import torch
from support.commands import assert_refused, call
from support.forgery import edit

from pipeline.cache.storage.disk_cache import DiskCache
from pipeline.cache.storage.local import LocalFolder
from pipeline.cache.storage.open import open_storage
from pipeline.config.cache_spec import choice
from pipeline.errors import BadInput
from pipeline.models.encoders.contract import without_network
from pipeline.models.encoders.tower.files import model_folder
from pipeline.train.run import Run
from pipeline.train.stream import Stream

REFUSED = [
    "http://127.0.0.1:9/c",
    "https://host/c",
    "ftp://host/c",
    "zip://c.zip",
    "zip::file://c.zip",
    "simplecache::s3://bucket/c",
    "s3://bucket/c::zip://x",
    "reference://::file://refs.json",
    "file::file:///etc",
    "local:///etc",
    "dir:///etc::file:///",
    "github://a:b@c/d",
    "ssh://host/c",
    "data://x",
    "S3://bucket/c",
]


@pytest.mark.parametrize("text", REFUSED)
def test_other_protocols_are_not_opened(text, monkeypatch):
    def connect(*_: object) -> None:
        pytest.fail("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(BadInput, match="cannot be opened|holds credentials"):
        open_storage(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://KEY:SECRET@bucket/c", "s3://***bucket/c holds credentials"),
        ("gs://SECRET@bucket", "gs://***bucket holds credentials"),
        ("s3://bucket/c?X-Amz-Signature=SECRET", "s3://bucket/c*** holds credentials"),
        ("https://bucket/c?token=SECRET", "https://bucket/c*** holds credentials"),
    ],
)
def test_secrets_are_refused_and_not_repeated(text, shown):
    with pytest.raises(BadInput) as error:
        open_storage(text)
    assert shown in error.value.message and "SECRET" not in str(error.value.with_hint)
    result = call("status", text)
    assert_refused(result, shown)
    assert "SECRET" not in result.err


def test_paths_are_folders(tmp_path):
    for text in (tmp_path, str(tmp_path), f"file://{tmp_path}", "a?b", "a@b", "a::b", "a:b"):
        assert isinstance(open_storage(text), LocalFolder)


@pytest.fixture
def server():
    """A listener, and whether anybody has come."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        yield listener


def came(server: socket.socket) -> bool:
    try:
        server.accept()
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("url", ["http://127.0.0.1:{}/c", "s3://bucket/c"])
def test_a_run_makes_no_request(place, tmp_path, server, url, monkeypatch):
    port = server.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    run = tmp_path / "run"
    shutil.copytree(place.run, run)
    edit(run / "run.json", lambda table: table.update(cache_path=url.format(port)))
    assert_refused(call("evaluate", run), "is opened only if you name it yourself", "--cache URL")
    if url.startswith("http"):
        assert call("report", run, "--out", tmp_path / "page").code == 0
        assert call("evaluate", run, "--cache", place.cache).code == 0
    assert not came(server)


def with_hub_encoder(table: dict) -> None:
    table["spec"]["encoder"] = {
        "name": "transformers",
        "layers": [2, 5],
        "model": "somebody/tracking",
    }


def test_a_model_that_a_run_names_is_not_fetched(place, tmp_path, server, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(
        "huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}"
    )
    settings = choice("encoder", {"name": "transformers", "layers": [1], "model": "some/body"})
    with without_network(), pytest.raises(BadInput, match="not on this machine"):
        model_folder(settings.settings, ["config.json"])
    run = tmp_path / "run"
    shutil.copytree(place.run, run)
    edit(run / "run.json", with_hub_encoder)
    with pytest.raises(BadInput, match="which the cache or run names, is not on this machine"):
        Stream(Run(run), torch.device("cpu"))
    assert not came(server)


def test_what_is_fetched_is_for_this_user_alone(tmp_path):
    disk = DiskCache(tmp_path / "disk", 10**9)
    disk.open("a", 10, [(0, 10)], lambda spans, put: put(0, b"0123456789")).close()
    disk.copy("b", 10, lambda folder: None)
    for path in (tmp_path / "disk", *(tmp_path / "disk").rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_an_address_of_a_folder_stays_what_it_was():
    assert open_storage("caches/a").address == str(Path("caches/a").absolute())
