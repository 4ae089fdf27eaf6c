"""`stillframe search` on a cache of a small CLIP: what it prints, its index, its page."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import media
from support.commands import assert_refused, call
from support.image_text import save_image_text, whole_model
from torch.nn import functional
from transformers import AutoTokenizer

from pipeline.cache.cache import Cache
from pipeline.cache.storage.open import open_storage
from pipeline.config import plugins
from pipeline.config.cache_spec import CacheSpec
from pipeline.datasets.manifest import manifest
from pipeline.extract.extract import extract
from pipeline.train.language.frame_embeddings import FrameEmbeddings, image_head_of
from pipeline.train.language.frame_index import FrameIndex, index_key, open_index

CPU = torch.device("cpu")
FRAMES, RATE = 40, 10
NAMES = ("a.mp4", "b<i>.mp4", "c.mp4")


@pytest.fixture(autouse=True)
def _one_thread(_threads: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Videos of noise that changes every second, one store for each, and a CLIP. Read only."""
    root = tmp_path_factory.mktemp("search")
    folder, rng = save_image_text("clip", root / "clip"), np.random.default_rng(0)
    for name in NAMES:
        (root / "videos").mkdir(exist_ok=True)
        tiles = rng.integers(0, 256, (FRAMES // RATE, 4, 4, 3)).astype(np.uint8)
        frames = tiles.repeat(16, 1).repeat(16, 2).repeat(RATE, 0)
        media.encode(root / "videos" / name, frames, rate=RATE)
    table = {
        "name": "small",
        "encoder": {"name": "transformers", "model": str(folder), "layers": [2]},
        "frames": {"size_px": 32},
        "store": {"store_frames": 1},
    }
    videos = manifest.build("folder", root / "videos", root / "data", {"labelled": False})
    return extract(plugins.validate(CacheSpec, table, "test"), videos, root / "caches")


@pytest.fixture
def cache(made: Cache, tmp_path: Path) -> Path:
    """A copy of its own, without an index."""
    return Path(shutil.copytree(made.path, tmp_path / "caches" / made.name))


def search(*arguments: object, said: str = "") -> list[dict[str, Any]]:
    """What a search finds, as JSON; `said` is what it says beside."""
    result = call("search", *arguments, "--json")
    assert result.code == 0, result.err
    assert re.fullmatch(said, result.err), result.err
    found: list[dict[str, Any]] = result.json
    return found


def index_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


NEW = r"index: \S+\.f16, 120 frames, \d[\d,]+ bytes\n"


def test_scores_are_cosines_with_the_whole_models_words(cache: Path, made: Cache) -> None:
    model_folder = made.path.parents[1] / "clip"
    texts = ["A red dog", "the cat jumps", "fence"]
    found = search(cache, *texts[:2], "--negative", texts[2], "--seconds", 1, "--top", 3, said=NEW)
    model, tokenizer = whole_model(model_folder), AutoTokenizer.from_pretrained(model_folder)
    with torch.no_grad():
        said = model.get_text_features(**tokenizer(texts, padding=True, return_tensors="pt"))
    vectors_ND = functional.normalize(said.pooler_output, dim=1).numpy()
    source = FrameEmbeddings(made, image_head_of(made, None, CPU), CPU)
    assert [one["query"] for one in found] == texts[:2]
    for one, vector_D in zip(found, vectors_ND, strict=False):
        scores = [source.of_video(name) @ (vector_D - vectors_ND[2]) for name in NAMES]
        # Ends of seconds, at which pictures change: the best seconds are among those.
        best = max(score.reshape(-1, RATE).mean(1).max() for score in scores)
        assert one["moments"][0]["score"] == pytest.approx(best, abs=2e-4)
        for moment in one["moments"]:
            first = round(moment["start_s"] * RATE)
            own = scores[NAMES.index(moment["video"])][first : first + RATE]
            assert moment["score"] == pytest.approx(own.mean(), abs=2e-4)
            assert moment["stop_s"] == pytest.approx(moment["start_s"] + 1)
            assert moment["start_s"] <= moment["best_s"] < moment["stop_s"]


def test_a_table_for_people(cache: Path) -> None:
    result = call("search", cache, "dog", "--top", 2, "--seconds", 2)
    assert re.match(r"dog\n\s+\n score   video +from s   to s \n", result.out), result.out
    rows = re.findall(r"^ -?0\.\d{3}   \S+ +\d\.\d +\d\.\d $", result.out, re.MULTILINE)
    assert len(rows) == 2


def test_the_index_is_made_once_and_again_when_the_cache_is_another(cache: Path) -> None:
    folder, receipt = cache.parent / ".search", sorted((cache / "receipts").iterdir())[-1]
    aside = receipt.rename(cache.parent / "receipt")  # as if its store were still to come
    search(cache, "dog", said=NEW.replace("120", "80"))
    early = index_files(folder)
    aside.rename(receipt)
    first = search(cache, "dog", said=NEW)
    late = index_files(folder)
    assert len(early) == len(late) == 2 and {*early}.isdisjoint(late)
    assert late == [f"{cache.name}-{index_key(Cache(cache))}{end}" for end in (".f16", ".json")]
    header = json.loads((folder / late[1]).read_text())
    assert (header["frames"], header["videos"], header["frame_s"]) == (120, 3, None)
    assert (folder / late[0]).stat().st_size == 120 * (24 * 2 + 8) + 4 * 8
    times = [(folder / name).stat().st_mtime_ns for name in late]
    assert search(cache, "dog") == first  # and nothing is said
    assert [(folder / name).stat().st_mtime_ns for name in late] == times
    for spoil in (
        lambda: (folder / late[0]).write_bytes(b"short"),
        lambda: (folder / late[1]).write_text("{"),
        lambda: (folder / late[1]).write_text(json.dumps(header | {"width": 12})),
        lambda: (folder / late[1]).unlink(),
    ):
        spoil()
        assert search(cache, "dog", said=NEW) == first


def test_an_index_that_cannot_lie_beside_the_cache_lies_elsewhere(
    cache: Path, tmp_path: Path
) -> None:
    (cache.parent / ".search").write_text("a file")
    no = r"no index can be written into \S+/\.search: .+\n"
    first = search(cache, "dog", said=no + NEW)
    assert len(index_files(tmp_path / "home" / "stillframe_search")) == 2
    assert search(cache, "dog") == first
    shutil.rmtree(tmp_path / "home")
    (tmp_path / "home").write_text("a file")
    memory = r"no index .+\nno index .+\nthe index is made in memory, and again by the next .+\n"
    assert search(cache, "dog", said=memory) == first


def test_a_link_in_its_place_is_not_followed(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (cache.parent / ".search").symlink_to(tmp_path / "elsewhere")
    search(cache, "dog", said=r"no index can .+\n" + NEW)
    assert index_files(tmp_path / "elsewhere") == []


def test_two_that_make_an_index_at_once_both_have_it(cache: Path) -> None:
    barrier, indexes = threading.Barrier(2), list[FrameIndex]()

    def make() -> None:
        opened = Cache(cache)
        barrier.wait()
        indexes.append(open_index(opened, None, CPU))

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(indexes) == 2 and torch.equal(*(index.embeddings_FD for index in indexes))
    assert len(index_files(cache.parent / ".search")) == 2


@pytest.fixture
def remote(cache: Path, tmp_path: Path) -> Iterator[str]:
    """The cache in an object store of this process."""
    url = f"memory://{tmp_path.name}/caches/{cache.name}"
    storage = open_storage(url)
    for name in sorted(path for path in cache.rglob("*") if path.is_file()):
        storage.write(name.relative_to(cache).as_posix(), name.read_bytes())
    yield url
    storage.parent.remove(cache.name)


def test_the_index_of_a_cache_that_is_far_away_lies_here(
    remote: str, cache: Path, tmp_path: Path
) -> None:
    far = search(remote, "dog", said=NEW)
    assert len(index_files(tmp_path / "home" / "stillframe_search")) == 2
    assert search(remote, "dog") == far
    assert far == search(cache, "dog")  # whose index is found there, too


def test_a_page_shows_the_best_frames_while_videos_are_there(cache: Path, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "found.html"
    result = call(
        "search", cache, "<b>dog", "--like", "b<i>.mp4@1.5", "--top", 2, "--seconds", 1,
        "--page", page,
    )  # fmt: skip
    assert result.out.endswith(f"page: {page}\n")
    text = page.read_text()
    assert text.count('src="data:image/jpeg;base64,') == 4
    assert "<h2>&lt;b&gt;dog</h2>" in text and "<h2>b&lt;i&gt;.mp4@1.5</h2>" in text
    links = re.findall(r'href="([^"]+)#t=\d+\.\d\d,\d+\.\d\d"', text)
    assert len(links) == 4
    for link in links:
        assert (page.parent / link.replace("%3C", "<").replace("%3E", ">")).is_file()
    gone = call("search", cache, "dog", "--top", 2, "--page", page, "--root", tmp_path / "gone")
    assert gone.code == 0 and "pictures of 2 videos are missing, the first: video " in gone.err
    assert page.read_text().count(">no picture<") == 2 and "<img" not in page.read_text()


REFUSED = {
    "nothing": ((), "there is nothing to look for"),
    "empty": ((" ",), "text 1 of 1 is empty"),
    "empty negative": (("dog", "--negative", ""), "text 2 of 2 is empty"),
    "no second": (("--like", "a.mp4"), "--like wants a video and a second of it, found 'a.mp4'"),
    "no number": (("--like", "a.mp4@"), "found 'a.mp4@'; next: for example --like a.mp4@1.5"),
    "no name": (("--like", "@3"), "found '@3'"),
    "endless": (("--like", "a.mp4@inf"), "found 'a.mp4@inf'"),
    "early": (("--like", "a.mp4@-1"), "found 'a.mp4@-1'"),
    "late": (("--like", "a.mp4@9"), "has no cached frame at 9 s: they are from 0 to 3.9 s"),
    "no video": (("--like", "q.mp4@1"), "no video called 'q.mp4'"),
    "no seconds": (("dog", "--seconds", "0"), "--seconds"),
    "no model": (("dog", "--model", "./nowhere"), "model './nowhere' looks like a local folder"),
    "no device": (("dog", "--device", "gpu"), "no device called 'gpu'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_input_is_one_line(case: str, made: Cache) -> None:
    arguments, message = REFUSED[case]
    assert_refused(call("search", made.path, *arguments), message)
    assert index_files(made.path.parent / ".search") == []  # nothing was begun


def test_caches_without_words_are_refused(
    cache: Path, material: Any, tmp_path: Path, made: Cache
) -> None:
    other = save_image_text("clip", tmp_path / "other", seed=1)
    assert_refused(call("search", cache, "dog", "--model", other), "is another than that of cache")
    assert_refused(call("search", material.cache.path, "dog"), "of no model that has a text half")
    moved = Path(shutil.copytree(made.path.parents[1] / "clip", tmp_path / "moved"))
    (moved / "tokenizer.json").unlink()
    assert_refused(call("search", cache, "dog", "--model", moved), "has no tokeniser")
    by_example = search(cache, "--like", "a.mp4@1", "--model", moved, said=NEW)
    assert len(by_example[0]["moments"]) > 0


def test_long_words_are_cut_and_said(cache: Path) -> None:
    search(cache, "fence " * 9, said="1 text longer than 16 tokens: the end was left out\n" + NEW)


def test_bench_search_measures_an_index_of_that_size() -> None:
    result = call("bench", "search", "--frames", 2500, "--width", 8, "--repeats", 2, "--json").json
    assert result["index_bytes"] == 2500 * (2 * 8 + 8)
    assert result["ways"][result["reference"]]["ratio"] == 1
    assert all(len(way["s"]) == 2 and way["median_s"] > 0 for way in result["ways"].values())


@pytest.mark.slow
def test_the_page_loads_in_silence_and_nothing_overflows(cache: Path, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if chromium is None:
        pytest.skip("no chromium on this machine")
    page, said = tmp_path / "found.html", list[str]()
    words = ["dog", "a " + "long" * 40]
    assert call("search", cache, *words, "--top", 3, "--seconds", 1, "--page", page).code == 0
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width in (1280, 390):
            tab = browser.new_page(viewport={"width": width, "height": 800})
            tab.on("console", lambda message: said.append(message.text))
            tab.on("pageerror", lambda error: said.append(str(error)))
            tab.goto(page.as_uri())
            assert tab.locator("h2").all_inner_texts() == words
            assert tab.evaluate("document.documentElement.scrollWidth") == width
            shown = "[...document.images].map(one => one.complete && one.naturalWidth)"
            assert tab.evaluate(shown) == [320] * 6
        browser.close()
    assert said == []
