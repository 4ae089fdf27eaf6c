"""Push and pull against a server that speaks the hub's protocol: what arrives is what was pushed, whatever stopped in between."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from huggingface_hub import constants
from support.commands import assert_refused, call, digest, fine
from support.hub import STRANGER, oid
from support.paths import ROOT

import stillframe
from pipeline.cache.cache import Cache
from pipeline.cache.verify import verify_cache
from pipeline.errors import BadInput, StillframeError
from pipeline.exchange.hub import push as pushing
from pipeline.exchange.hub.card import is_as_written
from pipeline.train.run import Run

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
"""What the HTTP library says of how huggingface_hub uploads."""

RUN, CACHE = "hf://me/tiny", "hf://datasets/me/tokens"


def pushed(*arguments: object) -> dict:
    result = call("push", *arguments, "--json")
    assert result.code == 0, result
    return result.json


def pulled(address: str, out: Path) -> dict:
    result = call("pull", address, "--out", out, "--json")
    assert (result.code, result.err) == (0, ""), result
    return result.json


def scores(*arguments: object) -> dict:
    result = fine("evaluate", *arguments, "--json").json
    return {key: result[key] for key in ("forms", "clips", "trivial", "videos_seen")}


# There and back


def test_a_run_and_its_cache_come_back_and_score_the_same(hub, place, tmp_path):
    assert pushed(place.run, "hf://me/tiny")["address"] == RUN
    assert pushed(place.cache, "hf://me/tokens")["address"] == CACHE
    run, cache = tmp_path / "runs/back", tmp_path / "caches/back"
    assert pulled(RUN, run)["what"] == "run"
    assert pulled("hf://me/tokens", cache)["what"] == "cache"
    assert verify_cache(Cache(cache)).is_valid and not verify_cache(Cache(cache)).orphans
    assert scores(run, "--cache", cache) == scores(place.run)
    before, after = Run(place.run), Run(run)
    for which in ("last", "best"):
        assert (before.checkpoint(which) is None) == (after.checkpoint(which) is None)
    assert after.checkpoint("last") == before.checkpoint("last")
    assert {path.name for path in tmp_path.joinpath("runs").iterdir()} == {"back"}
    stores = {name: sha for name, sha in digest(place.cache).items() if name.startswith("stores/")}
    assert stores and stores.items() <= digest(cache).items()
    assert scores(run, "--cache", cache) == scores(run, "--cache", cache)
    assert fine("evaluate", run, "--cache", cache).code == 0
    assert call("report", run, "--out", tmp_path / "page").code == 0
    assert_refused(call("evaluate", run), f"run {run} knows no cache here", "--cache CACHE")


def test_what_vouches_is_committed_last_and_alone(hub, place, monkeypatch):
    monkeypatch.setattr(pushing, "COMMIT_FILES", 20)
    pushed(place.cache, "hf://me/tokens")
    commits = hub.dataset("me/tokens").commits
    assert len(commits) > 4
    for _, files in commits[:-1]:
        assert "cache.json" not in files
        assert not any(name.startswith("receipts/") for name in files)
    last = commits[-1][1].keys() - commits[-2][1].keys()
    assert last == {"README.md", "cache.json"} | {
        f"receipts/{path.name}" for path in (place.cache / "receipts").iterdir()
    }
    pushed(place.run, "hf://me/tiny")
    before, after = (files.keys() for _, files in hub.model("me/tiny").commits[-2:])
    assert {name for name in before if name.endswith(".json")} == set()
    assert {"run.json", "last.json", "videos.json", "evaluation-val.json"} <= after


def test_a_push_again_sends_nothing_and_what_is_new_alone(hub, place, run):
    first = pushed(run, RUN)
    assert first["sent"] == first["files"]
    uploads, commits = list(hub.uploads), len(hub.model("me/tiny").commits)
    again = call("push", run, RUN)
    assert again.code == 0 and "all 10 files were there already" in again.out
    assert (hub.uploads, len(hub.model("me/tiny").commits)) == (uploads, commits)
    assert call("evaluate", run, "--split", "train").code == 0
    assert pushed(run, RUN)["sent"].keys() == {
        "evaluation-train.json",
        "answers-train.safetensors",
        "README.md",
    }
    assert len(hub.uploads) == len(uploads) + 1


def test_pulled_twice_pushed_elsewhere_and_pulled_it_stays_the_same(hub, place, tmp_path):
    pushed(place.run, RUN)
    pushed(place.cache, CACHE)
    for address, other in ((RUN, "hf://me/second"), (CACHE, "hf://datasets/me/second")):
        folder = tmp_path / other.replace(":", "").replace("/", "_")
        assert pulled(address, folder)["was_there"] is False
        assert pulled(address, folder)["was_there"] is True
        assert pushed(folder, other)["said_anew"] == {}
        pulled(other, tmp_path / f"{folder.name}_again")
        assert digest(tmp_path / f"{folder.name}_again") == digest(folder)


def test_other_weights_replace_the_old_ones_and_nothing_vouches_meanwhile(hub, place, tmp_path):
    pushed(place.run, RUN)
    other = tmp_path / "longer"
    fine("train", place.recipe, place.cache, "--out", other, "--set", "training.steps=5")
    done = pushed(other, RUN)
    assert "last-000003.safetensors" in done["removed"]
    first, last = (files.keys() for _, files in hub.model("me/tiny").commits[-2:])
    assert (
        "run.json" not in first and "last.json" not in first and "last-000005.safetensors" in first
    )
    assert "last-000003.safetensors" not in last and "evaluation-val.json" not in last
    pulled(RUN, tmp_path / "back")
    assert Run(tmp_path / "back").checkpoint("last") == Run(other).checkpoint("last")


# Stops


def test_an_upload_that_is_killed_goes_on(hub, place, tmp_path):
    """The process is gone in the middle of its large files."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "pipeline.cli", "push", str(place.cache), "hf://me/tokens"]
    process, arrived = [], threading.Event()

    def kill(method: str, path: str) -> str | None:
        if method == "PUT" and len(hub.uploads) >= 7:
            arrived.wait(60)
            os.kill(process[0].pid, signal.SIGKILL)
            return "reset"
        return None

    hub.fault = kill
    process.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE))
    arrived.set()
    process[0].communicate()
    assert process[0].returncode == -signal.SIGKILL
    hub.fault = lambda method, path: None
    before = len(hub.uploads)
    assert before >= 7
    assert "cache.json" not in hub.dataset("me/tokens").files
    assert call("pull", "hf://me/tokens", "--out", tmp_path / "back").code == 2
    pushed(place.cache, "hf://me/tokens")
    assert len(hub.uploads) == len(set(hub.uploads)) > before
    pulled("hf://me/tokens", tmp_path / "back")
    assert verify_cache(Cache(tmp_path / "back")).is_valid


def test_commits_that_were_made_are_not_made_again(hub, place, tmp_path, monkeypatch):
    monkeypatch.setattr(pushing, "COMMIT_FILES", 20)

    def full(method: str, path: str) -> int | None:
        return 413 if "/commit/" in path and hub.count("POST", "/commit/") > 2 else None

    hub.fault = full
    stopped = call("push", place.cache, CACHE)
    assert stopped.code == 2 and "the hub takes no more at once (HTTP 413" in stopped.err
    commits, files = len(hub.dataset("me/tokens").commits), hub.dataset("me/tokens").files
    assert commits == 3 and len(files) == 41
    assert_refused(
        call("pull", CACHE, "--out", tmp_path / "back"),
        f"{CACHE} is not whole: a cache was not pushed to its end, it has no cache.json yet",
        "runs the same push again",
    )
    assert not any(tmp_path.glob("back*"))
    hub.fault = lambda method, path: None
    sent = pushed(place.cache, CACHE)["sent"]
    assert not sent.keys() & files.keys()
    pulled(CACHE, tmp_path / "back")


def test_a_pull_that_stopped_goes_on(hub, place, tmp_path):
    pushed(place.cache, CACHE)
    out = tmp_path / "back"
    hub.fault = lambda method, path: 403 if "/resolve/" in path and "zarr/layer" in path else None
    assert_refused(call("pull", CACHE, "--out", out), "this account, or its token, may not do that")
    assert not out.exists()
    kept = digest(tmp_path / "back.partial/whole")
    hub.fault = lambda method, path: None
    hub.seen.clear()
    pulled(CACHE, out)
    fetched = {
        path.partition("/resolve/")[2].partition("/")[2]
        for _, path in hub.seen
        if "/resolve/" in path
    }
    assert fetched and kept and not fetched & kept.keys()
    assert not (tmp_path / "back.partial").exists()


def test_what_lies_aside_from_another_pull_is_no_part_of_it(hub, place, tmp_path, monkeypatch):
    pushed(place.run, RUN)
    aside = tmp_path / "back.partial/whole"
    (aside / "stores/00000.zarr").mkdir(parents=True)
    (aside / "stores/00000.zarr/zarr.json").write_text("{}")
    (aside / "run.json").write_text("{}")
    pulled(RUN, tmp_path / "back")
    assert digest(tmp_path / "back").keys() == hub.model("me/tiny").files.keys() - {
        "README.md",
        ".gitattributes",
    }
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    pulled(RUN, Path())
    assert digest(tmp_path / "here") == digest(tmp_path / "back")


def test_somebody_else_who_commits_meanwhile_is_noticed(hub, run):
    pushed(run, RUN)
    repository = hub.model("me/tiny")

    def commit(method: str, path: str) -> None:
        if "/preupload/" in path and len(repository.commits) == 3:
            repository.commit(repository.files | {"LICENSE": b"MIT"}, "by hand")

    hub.fault = commit
    assert call("evaluate", run, "--split", "train").code == 0
    result = call("push", run, RUN)
    assert result.code == 2 and "changed the repository meanwhile (HTTP 412" in result.err
    assert call("push", run, RUN).code == 0
    assert repository.files["LICENSE"] == b"MIT"


# Damage


def flipped(data: bytes, at: int = -20) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def test_a_file_that_is_damaged_on_its_way_is_refused_and_fetched_again(hub, place, tmp_path):
    pushed(place.run, RUN)
    repository = hub.model("me/tiny")
    name = "last-000003.safetensors"
    whole = repository.files[name]
    repository.listed[name] = oid(name, whole)
    repository.files[name] = flipped(whole)
    out = tmp_path / "back"
    assert_refused(
        call("pull", RUN, "--out", out),
        f"{RUN}: {name} arrived otherwise than the hub lists it",
        "fetches what is damaged alone",
    )
    assert not out.exists()
    repository.files[name] = whole
    hub.seen.clear()
    pulled(RUN, out)
    assert hub.count("HEAD", "/resolve/") == 1
    assert Run(out).tensors("last").keys() == Run(place.run).tensors("last").keys()


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("model", "last-000003.safetensors", "its content differs from its checksum"),
        ("model", "run.json", "is damaged: its content differs from its checksum"),
        ("model", "last.json", "is damaged: its content differs from its checksum"),
        ("model", "videos.json", "its content differs from its checksum"),
        ("dataset", "stores/00001.zarr/layer_2/c/0/0/0", "differs"),
        ("dataset", "manifest/manifest.jsonl", "differs"),
        ("dataset", "receipts/00001.json", "its content differs from its checksum"),
        ("dataset", "cache.json", "its content differs from its checksum"),
    ],
)
def test_a_repository_that_is_damaged_itself_is_refused(hub, place, tmp_path, kind, name, says):
    address = RUN if kind == "model" else CACHE
    pushed(place.run if kind == "model" else place.cache, address)
    files = hub.repositories[kind, address.removeprefix("hf://").removeprefix("datasets/")].files
    files[name] = flipped(files[name], len(files[name]) // 2 if name.endswith(".json") else -20)
    result = call("pull", address, "--out", tmp_path / "back")
    assert_refused(result, address, name, "ask its owner to push it again")
    assert "is damaged in the repository itself" in result.err
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        (r"receipts/.*", "stores have no receipt, the first is 00000"),
        (r"receipts/00001.json", "1 of 3 stores have no receipt, the first is 00001"),
        (
            r"(receipts/.*|cache.json)",
            "a cache was not pushed to its end, it has no cache.json yet",
        ),
        (r"stores/00001.zarr/layer_2/.*", "stores/00001.zarr/layer_2"),
    ],
)
def test_a_cache_without_all_of_its_files_is_refused(hub, place, tmp_path, gone, says):
    pushed(place.cache, CACHE)
    files = hub.dataset("me/tokens").files
    for name in [name for name in files if re.fullmatch(gone, name)]:
        del files[name]
    assert_refused(call("pull", CACHE, "--out", tmp_path / "back"), CACHE, says)
    assert not (tmp_path / "back").exists()


def test_a_damaged_or_unfinished_run_or_cache_is_not_pushed(hub, place, run, cache):
    weights = run / "last-000003.safetensors"
    weights.write_bytes(flipped(weights.read_bytes()))
    assert_refused(
        call("push", run, RUN), f"run {run} cannot be shared: {weights.name}: its content"
    )
    last = json.loads((run / "last.json").read_text())
    (run / "last.json").write_text(json.dumps(last | {"step": 2, "checksum": None}))
    assert_refused(call("push", run, RUN), f"run {run} is not finished: it is at step 2 of 3")
    (run / "last.json").unlink()
    assert_refused(call("push", run, RUN), f"run {run} is not finished: it has no checkpoint yet")
    shard = cache / "stores/00000.zarr/layer_2/c/0/0/0"
    shard.write_bytes(flipped(shard.read_bytes()))
    assert_refused(
        call("push", cache, CACHE), f"cache {cache} is damaged: stores/00000.zarr/layer_2/c/0/0/0"
    )
    (cache / "receipts/00000.json").unlink()
    assert_refused(call("push", cache, CACHE), "is not finished: 1 of 3 stores are missing")
    assert hub.seen == []


# Addresses, access, other content


@pytest.mark.parametrize(
    ("address", "next_step"),
    [
        ("hf://me", ""),
        ("hf://me/a/b", ""),
        ("hf://spaces/me/a", ""),
        ("hf://datasets/me", ""),
        ("hf://me/a b", ""),
        ("hf://me/a..b", ""),
        ("me/a", ""),
        ("https://huggingface.co/me/tiny/tree/main", "next: hf://me/tiny"),
        ("https://huggingface.co/datasets/me/tokens", "next: hf://datasets/me/tokens"),
    ],
)
def test_a_bad_address_is_refused(hub, place, tmp_path, address, next_step):
    for command in (("pull", address, "--out", tmp_path / "x"), ("push", place.run, address)):
        assert_refused(call(*command), f"'{address}' is no address of a repository", next_step)
    assert hub.seen == []


def test_addresses_that_name_another_kind_or_a_revision_are_no_target(hub, place):
    assert_refused(
        call("push", place.run, CACHE), "a run goes to a model repository", "next: hf://me/tokens"
    )
    assert_refused(call("push", place.cache, "hf://models/me/a"), "next: hf://datasets/me/a")
    assert_refused(
        call("push", place.run, f"{RUN}@v1"), "a push goes to the main branch", f"next: {RUN}"
    )
    assert_refused(call("push", "s3://bucket/cache", CACHE), "is a URL, and a push reads a folder")
    assert_refused(call("push", place.data, CACHE), "is neither a run nor a cache")
    assert_refused(
        call("push", place.folder / "no", CACHE), f"there is no folder {place.folder}/no"
    )


def test_who_may_not_is_told_so(hub, place, tmp_path, monkeypatch):
    pushed(place.run, RUN)
    out = tmp_path / "back"
    missing = f"{RUN}: there is no such model and no such data set on the hub, or it is private"
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    assert_refused(call("pull", RUN, "--out", out), missing, "hf auth login")
    assert_refused(call("push", place.run, RUN), "may not do that (HTTP 403")
    hub.model("me/tiny").private = False
    pulled(RUN, out)
    changed = call("push", place.run, RUN, "--licence", "mit")
    assert changed.code == 2 and "may not do that (HTTP 403" in changed.err
    hub.model("me/tiny").gated = True
    assert_refused(
        call("pull", RUN, "--out", tmp_path / "gated"),
        f"{RUN} is gated, and this account has not been let in",
        f"accept its terms at {hub.url}/me/tiny",
    )
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    for command in (("push", place.run, RUN), ("pull", RUN, "--out", tmp_path / "other")):
        assert_refused(call(*command), "the hub does not accept the token (HTTP 401", "HF_TOKEN")
    monkeypatch.delenv("HF_TOKEN")
    assert_refused(call("push", place.run, RUN), "there is no token of the hub", "hf auth login")
    hub.model("me/tiny").private = True
    assert_refused(call("pull", RUN, "--out", tmp_path / "other"), missing)
    assert {path.name for path in tmp_path.iterdir()} <= {"back", "gated.partial", "hub"}


def test_revisions_are_pulled_and_others_are_told_so(hub, place, tmp_path):
    pushed(place.run, RUN)
    repository = hub.model("me/tiny")
    first = repository.tags["v1"] = repository.head
    repository.commit({"README.md": b"---\n---\nmoved"}, "emptied")
    for revision in ("v1", first):
        assert pulled(f"{RUN}@{revision}", tmp_path / revision)["commit"] == first
    assert_refused(call("pull", RUN, "--out", tmp_path / "x"), "holds neither a run nor a cache")
    assert_refused(
        call("pull", f"{RUN}@v2", "--out", tmp_path / "x"),
        f"{RUN} has no revision 'v2'",
        f"{hub.url}/me/tiny/tree/main",
    )


def test_no_answer_is_one_line_with_exit_code_1(hub, place, tmp_path, monkeypatch):
    command = ("pull", RUN, "--out", tmp_path / "back")
    hub.fault = lambda method, path: 500
    result = call(*command)
    assert (result.code, result.err.count("\n")) == (
        1,
        1,
    ) and "the hub has trouble (HTTP 500" in result.err
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    result = call(*command)
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert (
        "http://127.0.0.1:9 gives no answer" in result.err and "look at the network" in result.err
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    from huggingface_hub.utils import close_session

    close_session()  # offline is looked at when a session is made
    try:
        for each in (command, ("push", place.run, RUN)):
            result = call(*each)
            assert result.code == 1 and "HF_HUB_OFFLINE is set; next: unset" in result.err, result
    finally:
        close_session()


def test_other_content_is_left_alone(hub, place, tmp_path):
    pushed(place.run, RUN)
    out = tmp_path / "mine"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert_refused(call("pull", RUN, "--out", out), f"{out} has other content", "new or empty")
    assert digest(out).keys() == {"notes.txt"}
    file = tmp_path / "file"
    file.write_text("mine")
    assert_refused(call("pull", RUN, "--out", file), f"{file} has other content")
    (tmp_path / "empty").mkdir()
    pulled(RUN, tmp_path / "empty")
    metrics = tmp_path / "empty/metrics.jsonl"
    metrics.write_bytes(flipped(metrics.read_bytes()))
    assert_refused(call("pull", RUN, "--out", metrics.parent), "its metrics.jsonl is not that of")
    repository = hub.model("me/tiny")
    repository.commit({"model.bin": b"x", "README.md": b"---\n---\n"}, "another model")
    assert_refused(call("push", place.run, RUN), f"{RUN} holds something else: model.bin")


def test_nothing_but_a_run_or_cache_is_fetched(hub, place, tmp_path):
    """Code, names that lead elsewhere, and files of nobody stay where they are."""
    pushed(place.cache, CACHE)
    files = hub.dataset("me/tokens").files
    evil = [
        "mine.py",
        "../evil.json",
        "stores/00000.zarr/../../../evil",
        "manifest/../x",
        "run.py",
        "cache.json.py",
    ]
    files.update(dict.fromkeys(evil, b"import os"))
    pulled(CACHE, tmp_path / "a/back")
    assert {path.name for path in tmp_path.iterdir()} <= {"a", "hub"}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["back"]
    assert verify_cache(Cache(tmp_path / "a/back")).orphans == {}


# What is said, and to whom


def test_nothing_of_this_machine_is_pushed(hub, place, run, tmp_path):
    (run / "training.log").write_text("secret")
    plan = call("push", run, RUN, "--dry-run")
    assert plan.code == 0 and hub.seen == []
    assert "run.json: without the places of this machine in cache_path" in plan.out
    assert "training.log" in plan.out.partition("stays here: ")[2]
    assert plan.out.endswith("nothing was sent\n")
    pushed(run, RUN)
    pushed(place.cache, CACHE)
    assert "training.log" not in hub.model("me/tiny").files
    for repository in hub.repositories.values():
        for name, data in repository.files.items():
            for place_here in (place.folder, run, tmp_path, Path.home()):
                assert str(place_here).encode() not in data, name
    header = json.loads(hub.dataset("me/tokens").files["cache.json"])
    assert re.fullmatch(r"videos-[0-9a-f]{8}", header["root"])
    told = json.loads(hub.model("me/tiny").files["run.json"])
    assert (told["cache_path"], told["manifest_path"]) == (None, None)


def test_a_repository_is_private_unless_it_is_asked_for(hub, place):
    assert pushed(place.run, RUN)["is_private"] is True
    assert hub.model("me/tiny").private is True
    assert pushed(place.cache, CACHE, "--public")["is_private"] is False
    assert hub.dataset("me/tokens").private is False
    again = call("push", place.run, RUN, "--public")
    assert again.code == 0 and f"{RUN} is private, as it was" in again.err
    assert hub.model("me/tiny").private is True


def card(data: bytes) -> tuple[dict, str]:
    _, front, body = data.decode().split("---\n", 2)
    return yaml.safe_load(front), body


def test_a_card_says_what_it_is_and_how_to_load_it(hub, place):
    pushed(place.run, RUN)
    facts, body = card(hub.model("me/tiny").files["README.md"])
    assert facts["library_name"] == "stillframe" and "license" not in facts
    assert facts["pipeline_tag"] == "video-classification"
    evaluation = stillframe.evaluate(place.run)
    top1 = evaluation.forms["streaming"]["top-1"]
    (result, *_) = facts["model-index"][0]["results"]
    assert result["metrics"][0] == {
        "type": "top-1",
        "value": top1.score,
        "name": "top-1, streaming",
    }
    assert f"| val | streaming | top-1 | {top1.score:.3f} | {top1.span()} |" in body
    assert (
        f'stillframe.load_run("{RUN}")' in body and f"stillframe pull {RUN} --out runs/tiny" in body
    )
    assert "No licence is given" in body and "`gru`" not in body and "`identity`" in body
    pushed(place.cache, CACHE, "--licence", "cc-by-4.0")
    facts, body = card(hub.dataset("me/tokens").files["README.md"])
    assert (facts["license"], facts["library_name"]) == ("cc-by-4.0", "stillframe")
    assert f'stillframe.open_cache("{CACHE}")' in body and "Licence: `cc-by-4.0`." in body
    assert "125 frames of 6 videos" in body


def test_a_card_is_written_anew_until_somebody_edits_it(hub, place):
    pushed(place.run, RUN)
    repository = hub.model("me/tiny")
    assert is_as_written(repository.files["README.md"])
    assert pushed(place.run, RUN, "--licence", "mit")["sent"].keys() == {"README.md"}
    assert card(repository.files["README.md"])[0]["license"] == "mit"
    mine = repository.files["README.md"].replace(b"# tiny", b"# My first model")
    repository.commit(repository.files | {"README.md": mine}, "by hand")
    again = call("push", place.run, RUN)
    assert again.code == 0 and "README.md was edited there, and stays as it is" in again.err
    assert repository.files["README.md"] == mine


# In Python


def test_a_run_is_loaded_in_one_line_once(hub, place, tmp_path, monkeypatch):
    pushed(place.run, RUN)
    local = stillframe.load_run(place.run).state_dict()
    hub.seen.clear()
    model = stillframe.load_run(RUN)
    assert model.state_dict().keys() == local.keys()
    assert all(torch.equal(each, local[name]) for name, each in model.state_dict().items())
    commit = hub.model("me/tiny").head
    home = tmp_path / f"assets/stillframe/models--me--tiny/{commit}"
    assert model.run.path == home
    fetched = hub.count("GET", "/(resolve|stored)/")
    stillframe.load_run(RUN)
    assert hub.count("GET", "/(resolve|stored)/") == fetched > 0
    hub.seen.clear()
    stillframe.load_run(f"{RUN}@{commit}")
    assert hub.seen == [], "a commit does not change"
    hub.fault = lambda method, path: "reset"
    assert stillframe.load_run(RUN).run.path == home
    with pytest.raises(StillframeError, match="and it is not on this machine"):
        stillframe.load_run("hf://me/other")
    hub.fault = lambda method, path: None
    with pytest.raises(BadInput, match="is a run"):
        stillframe.open_cache(RUN)


def test_processes_that_load_a_run_at_once_fetch_it_once(hub, place, tmp_path):
    pushed(place.run, RUN)
    hub.seen.clear()
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    code = f"import stillframe; print(stillframe.load_run('{RUN}').run.path)"
    command = [sys.executable, "-c", code]
    started = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    home = tmp_path / "home/assets/stillframe/models--me--tiny"
    assert {out.strip() for out, _ in said} == {str(home / hub.model("me/tiny").head)}
    assert hub.count("GET", "/resolve/.*/run.json") == 1


def test_a_cache_is_opened_in_one_line_and_is_damaged_in_one(hub, place):
    pushed(place.cache, CACHE)
    here, there = stillframe.open_cache(place.cache), stillframe.open_cache(CACHE)
    clip = here.clips[0].clip_id
    assert torch.equal(here.read(clip, layer=2).patches_TPD, there.read(clip, layer=2).patches_TPD)
    assert there.fingerprint == here.fingerprint
    with pytest.raises(BadInput, match="is a cache") as refused:
        stillframe.load_run(CACHE)
    assert refused.value.hint == f'stillframe.open_cache("{CACHE}")'
    files = hub.dataset("me/tokens").files
    files["stores/00000.zarr/layer_2/c/0/0/0"] = flipped(files["stores/00000.zarr/layer_2/c/0/0/0"])
    shutil.rmtree(constants.HF_ASSETS_CACHE)
    with pytest.raises(BadInput, match="is damaged in the repository itself"):
        stillframe.open_cache(CACHE)


def test_commands_that_want_a_folder_say_how_to_get_one(hub, place):
    assert_refused(
        call("evaluate", RUN), "is not a folder of this machine", f"stillframe pull {RUN} --out RUN"
    )
    assert_refused(call("train", place.recipe, CACHE), f"stillframe pull {CACHE} --out CACHE")


def test_no_code_of_a_repository_is_run(hub, place, tmp_path):
    """A run whose temporal module is a file from outside: it is not pushed, not fetched, and asked for by name."""
    (block,) = [
        text
        for text in re.findall(
            r"```python\n(.*?)```", (ROOT / "docs/extending.md").read_text(), re.DOTALL
        )
        if "class Temporal(" in text
    ]
    plugin = tmp_path / "moving_average.py"
    plugin.write_text(block)
    run = tmp_path / "average"
    fine(
        "train",
        place.recipe,
        place.cache,
        "--out",
        run,
        "--set",
        f'temporal={{ name = "{plugin}" }}',
    )
    assert call("--plugins", plugin, "push", run, RUN).code == 0
    files = hub.model("me/tiny").files
    assert not any(name.endswith(".py") for name in files)
    assert "It needs the plug-in `moving_average.py`" in files["README.md"].decode()
    trap = tmp_path / "ran"
    files["moving_average.py"] = f"open({str(trap)!r}, 'w')\n{block}".encode()
    pulled(RUN, tmp_path / "back")
    assert not (tmp_path / "back/moving_average.py").exists()
    assert_refused(
        call("evaluate", tmp_path / "back", "--cache", place.cache),
        "needs the temporal plug-in moving_average.py",
    )
    with pytest.raises(BadInput, match="needs the temporal plug-in moving_average.py"):
        stillframe.load_run(RUN)
    fine("--plugins", plugin, "evaluate", tmp_path / "back", "--cache", place.cache)
    assert not trap.exists()


def test_places_inside_of_receipts_and_specs_are_said_anew_and_sealed(hub, videos, tmp_path):
    """An encoder from a folder, and a video that went bad after its manifest was made: both name places of this machine."""
    here = tmp_path / "at_home"
    model = here / "models/vit"
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = transformers.ViTConfig(**sizes, patch_size=32, image_size=64)
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(model)
    spec = here / "vit.toml"
    spec.write_text(
        f'[encoder]\nname = "transformers"\nlayers = [1]\nmodel = "{model}"\n'
        "mean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n[frames]\nsize_px = 64\n"
    )
    shutil.copytree(videos, here / "videos")
    fine("manifest", "folder", here / "videos", "--out", here / "data", "--set", "val_fraction=0.3")
    (here / "videos/a/v1.mp4").write_bytes(b"no video any more")
    extracted = call("extract", spec, here / "data", "--out", here / "caches")
    assert extracted.code == 3, extracted
    (cache,) = (here / "caches").iterdir()
    assert str(here) in (cache / "cache.json").read_text()
    plan = call("push", cache, CACHE, "--dry-run")
    assert "cache.json: without the places of this machine in spec, root" in plan.out
    pushed(cache, CACHE)
    for name, data in hub.dataset("me/tokens").files.items():
        assert str(tmp_path).encode() not in data, name
    back = tmp_path / "back"
    pulled(CACHE, back)
    header = Cache(back).header
    assert header.spec["encoder"]["model"] == "vit"
    assert header.fingerprint == Cache(cache).fingerprint
    assert Cache(back).failures.keys() == {"a/v1.mp4"}
    assert verify_cache(Cache(back)).is_valid
    assert call("verify", back).code == 0
