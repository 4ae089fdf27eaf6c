"""A cache from a stranger, in which a name is a link to a folder of the user: nothing there is touched."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from support.commands import call, digest, fine

from pipeline.cache.layout import store_name
from pipeline.cache.storage.local import LocalFolder
from pipeline.cache.storage.own_folders import own_folder
from pipeline.errors import StillframeError


@pytest.fixture
def home(tmp_path) -> Path:
    """A folder of the user, with what must stay."""
    folder = tmp_path / "home"
    (folder / "sub").mkdir(parents=True)
    (folder / "thesis.tex").write_text("precious")
    (folder / "sub/00000.json").write_text("precious")
    (folder / ".thesis.1.partial").write_text("precious")
    return folder


@pytest.fixture
def mine(place, tmp_path) -> Path:
    """A copy of a finished cache."""
    shutil.copytree(place.cache, tmp_path / place.cache.name)
    return tmp_path / place.cache.name


def damage(cache: Path, store: int = 0) -> None:
    shard = cache / store_name(store) / "layer_5/c/0/0/0"
    data = bytearray(shard.read_bytes())
    data[9] ^= 1
    shard.write_bytes(data)


def extracted_again(place, cache: Path):
    return call("extract", place.spec, place.data, "--out", cache.parent)


@pytest.mark.parametrize("folder", ["leases", "receipts", "stores", "manifest"])
@pytest.mark.parametrize("command", ["repair", "extract"])
def test_a_folder_that_is_a_link_to_one_of_the_user(place, mine, home, folder, command):
    """`leases` was emptied, whatever was in it, as soon as the cache was finished."""
    if (mine / folder).exists():
        shutil.copytree(mine / folder, home, dirs_exist_ok=True)
        shutil.rmtree(mine / folder)
    (mine / folder).symlink_to("../home")
    if folder != "stores":
        damage(mine)
    before = digest(home)
    if command == "repair":
        result = call("verify", mine, "--repair", "--root", place.videos)
    else:
        result = extracted_again(place, mine)
    assert digest(home) == before
    assert "Traceback" not in result.err and result.code in (0, 1, 2, 3)
    if folder == "leases" or (folder == "receipts" and command == "repair"):
        assert result.code == 1
        assert result.err.count("\n") == 1 and "is a symbolic link" in result.err
        assert "put a real folder in place of the link" in result.err
    if folder == "leases":
        assert (mine / store_name(0)).is_dir()


def test_a_store_that_is_a_link_keeps_what_lies_beside_its_files(place, mine, home):
    """The stray file was deleted through the link."""
    store = mine / store_name(1)
    shutil.copytree(store, home / "store")
    (home / "store/precious.txt").write_text("precious")
    shutil.rmtree(store)
    store.symlink_to(home / "store")
    before = digest(home)
    result = call("verify", mine, "--repair", "--root", place.videos)
    assert digest(home) == before
    assert result.code == 1 and "is a symbolic link" in result.err


def test_a_damaged_store_that_is_a_link_is_made_anew_in_its_place(place, mine, home):
    store = mine / store_name(1)
    store.rename(home / "store")
    store.symlink_to(home / "store")
    damage(mine, 1)
    before = digest(home)
    fine_or_listed = call("verify", mine, "--repair", "--root", place.videos)
    assert fine_or_listed.code == 0, fine_or_listed
    assert digest(home) == before
    assert not store.is_symlink()
    assert digest(mine / "stores") == digest(place.cache / "stores")


def test_a_cache_that_is_reached_through_a_link_works_as_any(place, mine, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    mine.rename(elsewhere / mine.name)
    mine.symlink_to(elsewhere / mine.name)
    damage(mine)
    fine("verify", mine, "--repair", "--root", place.videos)
    assert digest(mine / "stores") == digest(place.cache / "stores")


def test_leases_keeps_what_is_no_lease(place, mine):
    leases = mine / "leases"
    leases.mkdir(exist_ok=True)
    (leases / "thesis.tex").write_text("precious")
    (leases / "00000.json").write_text("{}")
    assert extracted_again(place, mine).code == 0
    assert [path.name for path in leases.iterdir()] == ["thesis.tex"]


# The storage by itself


@pytest.fixture
def storage(tmp_path, home) -> LocalFolder:
    (tmp_path / "cache/real").mkdir(parents=True)
    (tmp_path / "cache/link").symlink_to(home)
    (tmp_path / "cache/real/link").symlink_to(home / "sub")
    return LocalFolder(tmp_path / "cache")


@pytest.mark.parametrize(
    "name", ["link/thesis.tex", "link/sub", "real/link/00000.json", "link/new", "real/link/a/b"]
)
@pytest.mark.parametrize(
    "change",
    [
        lambda storage, name: storage.remove(name),
        lambda storage, name: storage.write(name, b"x"),
        lambda storage, name: storage.create(name, b"x"),
        lambda storage, name: storage.stage(name),
    ],
    ids=["remove", "write", "create", "stage"],
)
def test_nothing_changes_behind_a_link(storage, home, name, change):
    before = digest(home)
    with pytest.raises((OSError, StillframeError), match="symbolic link") as error:
        change(storage, name)
    assert digest(home) == before
    assert "/cache/" in str(error.value)


@pytest.mark.parametrize("name", ["link", "real/link"])
def test_a_link_itself_is_removed_replaced_and_taken_without_being_followed(storage, home, name):
    before = digest(home)
    assert not storage.create(name, b"x")
    storage.write(name, b"new")
    assert (storage.path / name).read_bytes() == b"new"
    (storage.path / name).unlink()
    (storage.path / name).symlink_to(home)
    storage.remove(name)
    assert not os.path.lexists(storage.path / name)
    (storage.path / name).symlink_to(home)
    staged = storage.stage(name)
    (staged / "file").write_text("new")
    storage.publish(staged, name)
    assert (storage.path / name / "file").read_text() == "new"
    assert digest(home) == before


def test_a_folder_is_removed_and_the_links_in_it_but_not_where_they_lead(storage, home):
    before = digest(home)
    storage.remove("real")
    assert not (storage.path / "real").exists()
    assert digest(home) == before


@pytest.mark.parametrize("name", ["../home/thesis.tex", "real/../../home/thesis.tex", ".."])
def test_names_that_lead_out(storage, home, name):
    before = digest(home)
    with pytest.raises(OSError, match="leads out"):
        storage.remove(name)
    with pytest.raises(StillframeError, match="leads out"):
        storage.write(name, b"x")
    assert digest(home) == before


def test_a_folder_that_becomes_a_link_meanwhile_is_still_the_one_that_was_opened(storage, home):
    before = digest(home)
    with own_folder(storage.path, "real/file") as (folder, name):
        (storage.path / "real").rename(storage.path / "moved")
        (storage.path / "real").symlink_to(home)
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=folder))
    assert (storage.path / "moved/file").exists()
    assert digest(home) == before


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_hard_links(place, tmp_path, monkeypatch, error):
    """Leases were taken without links, and then zarr's own writer failed."""

    def refuse(source: object, *_: object, **__: object) -> None:
        raise OSError(error, os.strerror(error), str(source))

    monkeypatch.setattr(os, "link", refuse)
    fine("extract", place.spec, place.data, "--out", tmp_path)
    assert digest(tmp_path / place.cache.name / "stores") == digest(place.cache / "stores")
    assert call("verify", tmp_path / place.cache.name).code == 0
