"""Features in and out: files of every kind make the same cache, what is wrong is one line and leaves nothing, and what goes out comes back."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from support.commands import call
from support.training import recipe

from pipeline.cache.cache import Cache
from pipeline.cache.layout import TIMES
from pipeline.cache.verify import verify_cache
from pipeline.datasets.manifest import manifest
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import BadInput
from pipeline.exchange.export_features import export_features, file_names
from pipeline.exchange.import_features import Reading, import_features
from pipeline.extract.derive import derive
from pipeline.train.evaluate import evaluate
from pipeline.train.loop import train
from pipeline.train.stream import Stream

FRAMES = {"a": 40, "b": 31, "c": 52, "d": 25}
FPS, WIDTH = 5.0, 6


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Labels of every frame of videos that are not there."""
    root = tmp_path_factory.mktemp("root")
    (root / "groundTruth").mkdir()
    for name, frames in FRAMES.items():
        lines = [("cut", "mix")[at // 10 % 2] for at in range(frames)]
        (root / f"groundTruth/{name}.txt").write_text("\n".join(lines))
    settings = {"fps": FPS, "val_sequences": ["c", "d"]}
    return manifest.build("frame_labels", root, tmp_path_factory.mktemp("data"), settings)


def arrays(tokens: int = 0) -> dict[str, np.ndarray]:
    """(T, C), or (T, N, C), of numbers that float16 holds."""
    rng = np.random.default_rng(0)
    middle = (tokens,) if tokens else ()
    return {
        name: rng.integers(-40, 40, (frames, *middle, WIDTH)).astype(np.float32) / 8
        for name, frames in FRAMES.items()
    }


def written(folder: Path, kind: str = "npy", made: dict[str, np.ndarray] | None = None) -> Path:
    folder.mkdir(parents=True)
    for name, array in (made or arrays()).items():
        if kind == "npy":
            np.save(folder / f"{name}.npy", array)
        elif kind == "CT":
            np.save(folder / f"{name}.npy", np.ascontiguousarray(array.T))
        elif kind == "npz":
            np.savez(folder / f"{name}.npz", features=array, other=array[:1])
        else:
            with h5py.File(folder / f"{name}.h5", "w") as file:
                file["features"] = array
    return folder


def tokens_of(cache: Cache, video: str) -> np.ndarray:
    where = cache.locations[video]
    stored = cache.stored_rows(where.store, "layer_0", np.arange(where.start, where.stop))
    return (
        cache.codecs["layer_0"]
        .decode({key: torch.from_numpy(each) for key, each in stored.items()})
        .float()
        .numpy()
    )


@pytest.fixture(scope="module")
def cache(unseen: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = written(tmp_path_factory.mktemp("features") / "npy")
    return import_features(
        folder, unseen, tmp_path_factory.mktemp("caches"), Reading(FPS), ["store.store_mb=0.0008"]
    )


def test_a_cache_holds_the_features_at_their_times(cache: Cache, unseen: Manifest) -> None:
    assert len(cache.plan) > 1 and cache.fps == FPS and cache.failures == {}
    assert cache.shape.width == WIDTH and cache.shape.tokens_per_frame == 1
    for name, array in arrays().items():
        assert np.array_equal(tokens_of(cache, name)[:, 0], array)
        where = cache.locations[name]
        time_s = cache.small_array(where.store, TIMES)[where.start : where.stop]
        np.testing.assert_allclose(time_s, np.arange(FRAMES[name]) / FPS)
    assert verify_cache(cache).is_valid
    assert all(cache.hole(clip) is None for clip in unseen.clips)


@pytest.mark.parametrize(
    ("kind", "reading"),
    [
        ("CT", {"layout": "CT"}),
        ("npz", {"key": "features"}),
        ("h5", {}),
    ],
)
def test_files_of_every_kind_make_the_same_tokens(
    cache: Cache, unseen: Manifest, tmp_path: Path, kind: str, reading: dict[str, str]
) -> None:
    other = import_features(
        written(tmp_path / "in", kind), unseen, tmp_path, Reading(FPS, **reading)
    )
    for name in FRAMES:
        assert np.array_equal(tokens_of(other, name), tokens_of(cache, name))
    assert other.fingerprint != cache.fingerprint, "of other bytes"


def test_the_fingerprint_is_over_bytes_and_times_and_a_rerun_changes_nothing(
    unseen: Manifest, tmp_path: Path
) -> None:
    folder = written(tmp_path / "in")
    first = import_features(folder, unseen, tmp_path / "one", Reading(FPS))
    receipts = sorted((first.path / "receipts").iterdir())
    before = [path.read_bytes() for path in receipts]
    again = import_features(folder, unseen, tmp_path / "one", Reading(FPS))
    assert again.path == first.path and [path.read_bytes() for path in receipts] == before
    receipts[0].unlink()  # as after a stop
    assert not import_features(folder, unseen, tmp_path / "one", Reading(FPS)).missing_stores()
    shard = next((first.path / "stores").rglob("c/0/0/0"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    said = call("verify", first.path, "--repair")
    assert said.code == 2 and "these tokens are imported features" in said.err
    assert not import_features(folder, unseen, tmp_path / "one", Reading(FPS)).missing_stores()
    assert verify_cache(Cache(first.path)).is_valid
    assert (
        sum(path.stat().st_size for path in (first.path / "stores").rglob("*") if path.is_file())
        < 30_000
    )
    later = import_features(folder, unseen, tmp_path / "two", Reading(FPS, start_s=0.4))
    where = later.locations["a"]
    assert later.small_array(where.store, TIMES)[where.start] == pytest.approx(0.4)
    assert later.first_s("a") == 0, "seconds of truth count from the first frame of the video"
    one = np.load(folder / "a.npy")
    one[3, 2] += 1
    np.save(folder / "a.npy", one)
    other = import_features(folder, unseen, tmp_path / "three", Reading(FPS))
    assert len({first.fingerprint, later.fingerprint, other.fingerprint}) == 3


def test_stage_two_reads_it_and_streams_and_spot_checks_are_refused(
    cache: Cache, tmp_path: Path
) -> None:
    wanted = recipe(
        task={"name": "segment", "readout_width": 8, "heads": 2, "layers": 1},
        windows={"frames": 6, "fps": FPS, "eval_frames": "clip"},
        model={"mixer": "norm", "width": 8},
        training={"steps": 2, "evaluate_every": 2},
    )
    run = train(wanted, cache, tmp_path / "run")
    evaluation = evaluate(run, cache)
    assert {name: clip.weight for name, clip in evaluation.clips.items()} == {"c": 52, "d": 25}
    with pytest.raises(BadInput, match="these tokens are imported features: there is no model"):
        Stream(run)
    said = call("spot-check", cache.path)
    assert (
        said.code == 2
        and "these tokens are imported features" in said.err
        and said.err.count("\n") == 1
    )


def test_a_cache_is_derived_from_it(cache: Cache, tmp_path: Path) -> None:
    small = derive(cache, ["codec.name=int8"], tmp_path)
    np.testing.assert_allclose(tokens_of(small, "b")[:, 0], arrays()["b"], atol=5 / 127)


def test_a_fitted_codec_and_a_grid(unseen: Manifest, tmp_path: Path) -> None:
    folder = written(tmp_path / "in", made=arrays(tokens=4))
    grid = import_features(folder, unseen, tmp_path / "grid", Reading(FPS, grid=(2, 2)))
    assert grid.shape.grid_hw == (2, 2) and np.array_equal(tokens_of(grid, "c"), arrays(4)["c"])
    fitted = import_features(
        folder,
        unseen,
        tmp_path / "pca",
        Reading(FPS, layout="TNC"),
        ["codec.name=pca", f"codec.components={WIDTH}"],
    )
    assert fitted.shape.grid_hw == (1, 4)
    np.testing.assert_allclose(tokens_of(fitted, "c"), arrays(4)["c"], atol=0.02)


def broken(folder: Path, **changes: np.ndarray) -> Path:
    written(folder)
    for name, array in changes.items():
        np.save(folder / f"{name}.npy", array)
    return folder


NAN, HUGE = arrays()["b"], arrays()["b"]
NAN, HUGE = NAN.copy(), HUGE.copy()
NAN[7, 2], HUGE[7, 2] = np.nan, 1e5


@pytest.mark.parametrize(
    ("changes", "reading", "message"),
    [
        ({"b": NAN}, {}, "b.npy holds nan in frame 7 of 31, counted from 0"),
        (
            {"b": HUGE},
            {},
            "b.npy: codec 'float16' cannot hold these tokens: the largest value is 100000",
        ),
        ({"b": np.zeros((31, 7))}, {}, "b.npy has features of 1 x 7, "),
        ({"b": np.zeros((0, WIDTH))}, {}, "b.npy is empty: 0 x 6"),
        ({"b": np.zeros(31)}, {}, "b.npy: the array is 31, wanted 2 axes, TC"),
        (
            {"b": np.array(["x"] * 6).reshape(1, 6)},
            {},
            "b.npy: the array holds <U1, wanted numbers",
        ),
        (
            {"b": np.array([[{}]], object)},
            {},
            "b.npy cannot be read: Array can't be memory-mapped: Python objects in dtype.",
        ),
        (
            {},
            {"fps": 15.0},
            "video a is 8.0 s long by the manifest, and 40 features at 15 a second are 2.7 s",
        ),
        (
            {},
            {"grid": (2, 2), "layout": "TC"},
            "a grid of 2 x 2 has 4 features a frame, the files of",
        ),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    unseen: Manifest,
    tmp_path: Path,
    changes: dict[str, np.ndarray],
    reading: dict[str, object],
    message: str,
) -> None:
    folder = broken(tmp_path / "in", **changes)
    with pytest.raises(BadInput) as caught:
        import_features(folder, unseen, tmp_path / "caches", Reading(**{"fps": FPS, **reading}))
    assert message in caught.value.message and "\n" not in caught.value.message
    assert not (tmp_path / "caches").exists()


def test_flipped_axes_and_a_rate_that_would_fit_are_told(unseen: Manifest, tmp_path: Path) -> None:
    folder = written(tmp_path / "in", "CT")
    with pytest.raises(BadInput) as caught:
        import_features(folder, unseen, tmp_path / "caches", Reading(FPS))
    assert (
        caught.value.hint
        == "all first axes are equal, so frames may be the second one: --layout CT"
    )
    with pytest.raises(BadInput) as caught:
        import_features(folder, unseen, tmp_path / "caches", Reading(15.0, layout="CT"))
    assert caught.value.hint == "--fps 5 would fit"


def test_missing_and_ambiguous_files(unseen: Manifest, tmp_path: Path) -> None:
    folder = written(tmp_path / "in", "npz")
    (folder / "b.npz").unlink()
    (folder / "d.npz").unlink()
    with pytest.raises(
        BadInput, match="in has no features of 2 of 4 videos of the manifest: b, d$"
    ):
        import_features(folder, unseen, tmp_path / "caches", Reading(FPS))
    with pytest.raises(BadInput, match="holds the arrays features, other: say which one"):
        import_features(written(tmp_path / "all", "npz"), unseen, tmp_path / "caches", Reading(FPS))
    with pytest.raises(BadInput, match=r"gone does not exist"):
        import_features(tmp_path / "gone", unseen, tmp_path / "caches", Reading(FPS))
    with pytest.raises(BadInput, match="--set is for the codec and the store of imported features"):
        import_features(
            written(tmp_path / "set"), unseen, tmp_path / "caches", Reading(FPS), ["frames.fps=2"]
        )
    cut = written(tmp_path / "cut")
    data = (cut / "c.npy").read_bytes()
    (cut / "c.npy").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadInput, match=r"c\.npy cannot be read: "):
        import_features(cut, unseen, tmp_path / "caches", Reading(FPS))
    with h5py.File(tmp_path / "links.h5", "w") as file:
        file["features"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "x")
    linked = written(tmp_path / "linked", "h5")
    (tmp_path / "links.h5").replace(linked / "a.h5")
    with pytest.raises(
        BadInput, match=r"a\.h5 cannot be read: 'features' is no array that lies in the file"
    ):
        import_features(linked, unseen, tmp_path / "caches", Reading(FPS))
    assert not (tmp_path / "caches").exists()


# Out


@pytest.mark.parametrize("pool", ["mean", "none"])
def test_what_goes_out_comes_back(unseen: Manifest, tmp_path: Path, pool: str) -> None:
    made = arrays(tokens=4)
    source = import_features(
        written(tmp_path / "in", made=made), unseen, tmp_path / "one", Reading(FPS, grid=(2, 2))
    )
    folder = export_features(source, tmp_path / "out", pool=pool)
    facts = json.loads((folder / "features.json").read_text())
    assert (
        facts["fps"] == FPS
        and facts["pool"] == pool
        and facts["videos"]["b"] == {"file": "b.npy", "frames": 31}
    )
    for name, array in made.items():
        wanted = array.mean(1) if pool == "mean" else array
        np.testing.assert_allclose(np.load(folder / f"{name}.npy"), wanted, atol=1e-6)
        np.testing.assert_allclose(
            np.load(folder / f"time_s/{name}.npy"), np.arange(FRAMES[name]) / FPS
        )
    grid = (2, 2) if pool == "none" else None
    back = import_features(
        folder, unseen, tmp_path / "two", Reading(FPS, grid=grid), ["codec.name=bfloat16"]
    )
    assert back.shape.patch_tokens == (4 if pool == "none" else 1)
    wanted = made["c"] if pool == "none" else made["c"].mean(1, keepdims=True)
    np.testing.assert_allclose(tokens_of(back, "c"), wanted, atol=0.02)


def test_parquet_has_a_row_for_each_token(unseen: Manifest, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    made = arrays(tokens=4)
    source = import_features(
        written(tmp_path / "in", made=made), unseen, tmp_path / "one", Reading(FPS, grid=(2, 2))
    )
    table = parquet.read_table(
        export_features(source, tmp_path / "out", pool="none", kind="parquet") / "features.parquet"
    )
    assert table.column_names == ["video", "frame", "time_s", "token", "feature"]
    assert table.num_rows == 4 * sum(FRAMES.values())
    rows = table.to_pydict()
    number = rows["video"].index("c") + 4 * 50 + 2
    assert [rows[name][number] for name in ("video", "frame", "token")] == ["c", 50, 2]
    assert rows["time_s"][number] == 10.0 and np.array_equal(
        rows["feature"][number], made["c"][50, 2]
    )
    pooled = export_features(source, tmp_path / "pooled", kind="parquet")
    assert parquet.read_table(pooled / "features.parquet").num_rows == sum(FRAMES.values())


def test_an_extracted_cache_goes_out_by_cls_too(material, tmp_path: Path) -> None:
    folder = export_features(material.cache, tmp_path / "out", pool="cls")
    where = material.cache.locations["a/v1.mp4"]
    stored = material.cache.stored_rows(where.store, "special", np.arange(where.start, where.stop))
    wanted = material.cache.codecs["special"].decode(
        {key: torch.from_numpy(each) for key, each in stored.items()}
    )
    assert np.array_equal(np.load(folder / "a/v1.npy"), wanted[:, 0].float().numpy())
    for pool, layer, message in (
        ("cls", 2, "holds the CLS token of layer 5 alone"),
        ("mean", 3, r"holds the layers \[2, 5\], not 3"),
    ):
        with pytest.raises(BadInput, match=message):
            export_features(material.cache, tmp_path / "other", layer, pool)
    with pytest.raises(BadInput, match="out is there and not empty"):
        export_features(material.cache, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_names_of_files_tell_videos_apart() -> None:
    assert file_names(["a/x.mp4", "b"]) == {"a/x.mp4": "a/x.npy", "b": "b.npy"}
    assert file_names(["x.mp4", "x.avi"]) == {"x.mp4": "x.mp4.npy", "x.avi": "x.avi.npy"}
    with pytest.raises(BadInput, match="no path below a folder"):
        file_names(["../x"])


def test_the_commands(unseen: Manifest, tmp_path: Path) -> None:
    folder = written(tmp_path / "in", "CT")
    args = ["--manifest", str(unseen.folder), "--layout", "CT", "--out", str(tmp_path / "caches")]
    told = call("import-features", folder, "--fps", "5", *args, "--json")
    assert told.code == 0, told
    (made,) = (tmp_path / "caches").iterdir()
    assert made.name.startswith("features-")
    out = call("export-features", made, "--out", tmp_path / "out")
    assert out.code == 0 and out.out == f"{tmp_path / 'out'}: 148 frames of 4 videos\n"
    wrong = call("export-features", made, "--out", tmp_path / "two", "--pool", "max")
    assert wrong.code == 2
    assert wrong.err.startswith("error: no pool called 'max'; there are: cls, mean, none")
    wrong = call("import-features", folder, "--fps", "5", *args, "--grid", "7")
    assert (
        wrong.code == 2 and wrong.err == "error: --grid: wanted ROWSxCOLUMNS, as 7x7, found '7'\n"
    )
