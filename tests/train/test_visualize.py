"""Answers drawn over the videos they were given for."""

from __future__ import annotations

import dataclasses
import shutil

import av
import numpy as np
import pytest
import torch
from support.broken_media import hanging_video, impatient, noise
from support.commands import assert_refused, call
from support.material import FPS

from pipeline.config import plugins
from pipeline.config.recipe import Recipe
from pipeline.models.encoders import address
from pipeline.train.loop import train
from pipeline.train.setup import RunContext
from pipeline.train.visualize import DRAWN_PX, SHEET_PX, VideoFile, contact_sheet, drawings, squares
from pipeline.video.reader import FrameReader


def pixels_of(path) -> list[np.ndarray]:
    with av.open(path) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]


@pytest.fixture(scope="module")
def run(material, tmp_path_factory):
    table = {
        "name": "test",
        "task": {"name": "classify", "readout_width": 16, "heads": 2},
        "temporal": {"name": "gru"},
        "windows": {"frames": 4, "fps": FPS},
        "training": {"steps": 2, "batch_size": 4},
    }
    return train(
        plugins.validate(Recipe, table, "test"),
        material.cache,
        tmp_path_factory.mktemp("runs") / "run",
    )


def test_evaluate_draws_as_many_clips_as_asked(material, run):
    result = call("evaluate", run.path, "--split", "train", "--draw", "3")
    assert result.code == 0 and "drawn: " in result.err, result
    files = sorted((run.path / "drawn-train").glob("*.mp4"))
    assert len(files) == 3
    for file in files:
        frames = pixels_of(file)
        assert len(frames) == 4 and min(frames[0].shape[:2]) >= DRAWN_PX
    (sheet,) = pixels_of(run.path / "drawn-train.png")
    assert sheet.shape[0] >= 3 * DRAWN_PX and sheet.shape[1] >= 4 * DRAWN_PX
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 10


def test_the_frames_drawn_on_are_those_of_the_window(material):
    clip = next(clip for clip in material.manifest.clips if clip.source == "a/v2.mp4")
    time_s = np.array([3, 5, 5, 16]) / FPS
    with FrameReader(material.root, torch.device("cpu")) as reader:
        drawn_on = squares(reader, material.cache, clip, time_s)
    for frame, number in zip(drawn_on, (3, 5, 5, 16), strict=True):
        painted = address.paint(2, number, DRAWN_PX)
        assert np.abs(frame.astype(int) - painted).mean() < 12


def test_a_video_that_is_gone_is_named(material, run, tmp_path, monkeypatch):
    moved = material.root.with_name("moved")
    material.root.rename(moved)
    try:
        assert_refused(
            call("evaluate", run.path, "--draw", "1"),
            "cannot be drawn on",
            "put the videos back",
            out=True,
        )
    finally:
        moved.rename(material.root)


def test_a_video_that_hangs_costs_its_own_clips(material, run, tmp_path, monkeypatch):
    """The others are drawn, and it is named with the reason."""
    impatient(monkeypatch)
    root = tmp_path / "videos"
    shutil.copytree(material.root, root)
    (clip,) = [clip for clip in material.manifest.clips if clip.source == "b/v3.mp4"]
    hanging_video(root / clip.source, noise(2))
    manifest = dataclasses.replace(material.manifest, root=root)
    told: list[str] = []
    clips = [other.clip_id for other in manifest.clips if other.split == clip.split]
    drawn = list(
        drawings(run, RunContext.of(material.cache, manifest), 6, clip.split, say=told.append)
    )
    assert [drawing.clip.clip_id for drawing in drawn] == [
        other for other in clips if other != clip.clip_id
    ]
    (reason,) = told
    assert reason.startswith(f"clip {clip.clip_id}: video {root}/b/v3.mp4 cannot be drawn on: ")
    assert "v3.mp4: decoder made no progress for 1 s" in reason


def test_a_video_file_appears_when_it_is_whole(tmp_path):
    frames = [np.full((33, 47, 3), level, np.uint8) for level in (0, 120, 250)]
    with VideoFile(tmp_path / "new/a.mp4", 12.5) as file:
        for frame in frames:
            file.append(frame)
        assert not (tmp_path / "new/a.mp4").exists()
    assert [round(frame.mean(), -1) for frame in pixels_of(tmp_path / "new/a.mp4")] == [0, 120, 250]
    assert pixels_of(tmp_path / "new/a.mp4")[0].shape == (34, 48, 3)
    with av.open(tmp_path / "new/a.mp4") as file:
        assert float(file.streams.video[0].average_rate) == 12.5
    with pytest.raises(RuntimeError, match="stop"), VideoFile(tmp_path / "b.mp4", 10) as file:
        file.append(frames[0])
        raise RuntimeError("stop")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_contact_sheet_is_no_wider_than_a_screen(tmp_path):
    contact_sheet(tmp_path / "sheet.png", [np.full((4, 384, 1184, 3), 90, np.uint8)])
    (sheet,) = pixels_of(tmp_path / "sheet.png")
    assert sheet.shape == (round(384 * SHEET_PX / (4 * 1184)) + 4, SHEET_PX, 3)


def test_a_contact_sheet_has_a_row_for_each_clip(tmp_path):
    clips = [np.full((6, 20, 30, 3), level, np.uint8) for level in (50, 200)] + [
        np.zeros((1, 20, 10, 3), np.uint8)
    ]
    contact_sheet(tmp_path / "sheet.png", clips)
    (sheet,) = pixels_of(tmp_path / "sheet.png")
    assert sheet.shape == (3 * 24, 4 * 30, 3)
    assert (
        (sheet[:20] == 50).all()
        and (sheet[24:44] == 200).all()
        and (sheet[48:68, 10:] == 255).all()
    )
