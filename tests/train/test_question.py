"""Questions about videos: what padding, blindness and unknown answers do to scores, and whole runs on a world that talks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.image_text import sentence_folder
from torch.nn import functional

from pipeline.cache.cache import Cache
from pipeline.config import plugins
from pipeline.config.cache_spec import CacheSpec
from pipeline.config.recipe import Recipe
from pipeline.datasets import world
from pipeline.datasets.manifest.manifest import Manifest, write
from pipeline.datasets.manifest.targets import collate
from pipeline.datasets.manifest.texts import ClipTexts
from pipeline.errors import BadInput
from pipeline.extract.extract import extract
from pipeline.models.tasks.contract import STREAMING, WINDOW
from pipeline.models.tasks.parts.canvas import RIGHT as RIGHT_INK
from pipeline.models.tasks.parts.canvas import WRONG as WRONG_INK
from pipeline.models.tasks.question import Settings, Task
from pipeline.records import Clip, TokenShape
from pipeline.train.evaluate import evaluate
from pipeline.train.evaluation import read_evaluation
from pipeline.train.loop import train
from pipeline.train.run import Run, load_model
from pipeline.train.setup import RunContext
from pipeline.train.stream import Stream
from pipeline.train.windows.index import WindowRef

CPU = torch.device("cpu")

B, T, N, D, TEXT = 4, 3, 5, 8, 6
SHAPE = TokenShape(width=D, grid_hw=(1, N), special_tokens=0, layers=(1,))
LABELS = ("down", "left", "right", "up")


def make(**keys: Any) -> Task:
    small = {"readout_width": 16, "heads": 2, "layers": 2, "text_width": TEXT}
    return Task(Settings(**small | keys), LABELS)


def asked(number: int) -> dict[str, np.ndarray]:
    """The truth of one window, as it is sampled: a question of 2 to 4 tokens with 2 to 4 choices, of
    which the last is right."""
    rng = np.random.default_rng(number)
    tokens, choices = 2 + number % 3, 2 + number % 3
    return {
        "question": rng.normal(size=(tokens, TEXT)).astype(np.float32),
        "question_valid": np.ones(tokens, bool),
        "label": np.array(number % len(LABELS), np.int64),
        "is_answered": np.array(True),
        "choices": rng.normal(size=(choices, TEXT)).astype(np.float32),
        "choice": np.array(choices - 1, np.int64),
    }


def batch(task: Task, numbers: range | list[int] = range(B)) -> dict[str, torch.Tensor]:
    prepared = collate([task.prepare(asked(number), None) for number in numbers])
    return {name: torch.from_numpy(array) for name, array in prepared.items()}


def readout(task: Task, form: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return task.readout(form, D, T, SHAPE).eval()


@pytest.mark.parametrize("answers", ["open", "choices"])
@pytest.mark.parametrize("form", [STREAMING, WINDOW])
@torch.no_grad()
def test_padding_of_questions_and_choices_changes_nothing(answers: str, form: str) -> None:
    """A window beside longer questions with more choices says what it says alone."""
    task = make(answers=answers)
    reads, x_BTND = readout(task, form), torch.randn(B, T, N, D)
    together = task.answer(form, reads(x_BTND, task.query(batch(task))))
    losses = []
    for number in range(B):
        alone, x = batch(task, [number]), x_BTND[number : number + 1]
        prediction = reads(x, task.query(alone))
        said = task.answer(form, prediction)
        torch.testing.assert_close(together[number : number + 1, : said.shape[1]], said)
        assert not together[number, said.shape[1] :, 1].any(), "what is not there is not likely"
        losses.append(task.loss(form, prediction, alone).item())
    prediction = reads(x_BTND, task.query(batch(task)))
    whole = task.loss(form, prediction, batch(task))
    assert whole.item() == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("form", [STREAMING, WINDOW])
@torch.no_grad()
def test_the_blind_readout_does_not_see_the_video(form: str) -> None:
    sighted, blind = (make(sees=sees) for sees in ("video", "question"))
    one, other, query = (
        torch.randn(B, T, N, D),
        torch.randn(B, T, N, D),
        sighted.query(batch(sighted)),
    )
    assert torch.equal(readout(blind, form)(one, query), readout(blind, form)(other, query))
    seen = readout(sighted, form)
    assert not torch.allclose(seen(one, query), seen(other, query), atol=1e-3)
    # It is asked, though.
    turned = {name: tensor.flip(0) for name, tensor in query.items()}
    assert not torch.allclose(
        readout(blind, form)(one, turned), readout(blind, form)(one, query), atol=1e-3
    )


@torch.no_grad()
def test_a_choice_is_scored_by_its_own_embedding_wherever_it_stands() -> None:
    task = make(answers="choices")
    query, x_BTND = task.query(batch(task, [2, 5])), torch.randn(2, T, N, D)
    reads = readout(task, WINDOW)
    turned = query | {"choices": query["choices"].flip(1)}
    torch.testing.assert_close(reads(x_BTND, turned), reads(x_BTND, query).flip(1))


def test_an_answer_beyond_the_vocabulary_is_wrong_and_teaches_nothing() -> None:
    task = make()
    targets = batch(task)
    targets["right"] = torch.tensor([0, -1, 2, -1])
    targets["is_answered"] = torch.tensor([True, True, True, False])
    host = {name: tensor.numpy() for name, tensor in targets.items()}
    logits_BK = torch.eye(4)[[0, 1, 3, 0]]
    scores = task.score(task.answer(WINDOW, logits_BK).numpy(), host)
    assert {name: values.tolist() for name, values in scores.items()} == {"accuracy": [1, 0, 0, 0]}
    assert task.weight(host).tolist() == [1, 1, 1, 0], "nobody knows the last one's answer"
    assert task.terms(host) == 2
    known = functional.cross_entropy(logits_BK[[0, 2]], torch.tensor([0, 2]))
    assert task.loss(WINDOW, logits_BK, targets).item() == pytest.approx(known.item())
    frames_BTK = torch.stack([logits_BK, logits_BK + 1], 1)
    assert task.loss(STREAMING, frames_BTK, targets).item() == pytest.approx(known.item())
    targets["right"][:] = -1
    assert task.loss(WINDOW, logits_BK, targets).item() == 0


def test_smoothing_is_over_the_answers_that_are_there() -> None:
    task = make(answers="choices", label_smoothing=0.2)
    targets = batch(task, [0, 2])  # 2 and 4 choices
    logits_BC = torch.tensor([[1.0, 2.0, -1e30, -1e30], [0.5, 0.0, 1.0, 3.0]])
    expected = [
        functional.cross_entropy(logits_BC[:1, :2], torch.tensor([1]), label_smoothing=0.2),
        functional.cross_entropy(logits_BC[1:], torch.tensor([3]), label_smoothing=0.2),
    ]
    assert task.loss(WINDOW, logits_BC, targets).item() == pytest.approx(np.mean(expected))


def test_the_trivial_answer_is_what_is_right_most_often() -> None:
    task, many = make(), Task(Settings(), ("a", "b", "c", "d", "e", "f"))
    right = {"right": np.array([3, 1, 3, -1]), "is_answered": np.array([True, True, True, True])}
    known = task.statistics(iter([right]))
    assert known["counts"].tolist() == [0, 1, 0, 2]
    answer = task.trivial(right, known)
    np.testing.assert_allclose(
        answer[0], [[3, 3 / 7], [1, 2 / 7], [0, 1 / 7], [2, 1 / 7]], rtol=1e-6
    )
    assert task.score(answer, right)["accuracy"].tolist() == [1, 0, 1, 0]
    share = np.array([1 / 3, 2 / 3])
    assert task.trivial_loss(known) == pytest.approx(-2 * (share * np.log(share)).sum())
    assert [metric.name for metric in many.metrics] == ["accuracy", "top-5"]
    said = many.score(
        many.answer(WINDOW, torch.arange(6.0).flip(0).repeat(2, 1)).numpy(),
        {"right": np.array([4, 5])},
    )
    assert {name: values.tolist() for name, values in said.items()} == {
        "accuracy": [0, 0],
        "top-5": [1, 0],
    }

    choose = make(answers="choices")
    host = {name: tensor.numpy() for name, tensor in batch(choose, [0, 1, 1, 2]).items()}
    known = choose.statistics(iter([host]))
    assert known["counts"].tolist() == [0, 1, 2, 1]
    # The place that is right most often, or of two choices the better one.
    assert choose.trivial(host, known)[:, 0, 0].tolist() == [1, 2, 2, 2]
    assert choose.trivial_loss(known) == pytest.approx(2 * np.log([2, 3, 3, 4]).mean())


def test_what_is_said_to_a_person() -> None:
    answer = np.array([[2, 0.75], [0, 0.25]], np.float32)
    assert make().plain(answer, np.eye(2, 3)) == {"label": "right", "probability": 0.75}
    assert make(answers="choices").plain(answer, np.eye(2, 3)) == {"choice": 2, "probability": 0.75}


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(BadInput) as caught:
        Task(Settings(), ())
    assert caught.value.message == (
        "task 'question': the manifest has no labels, which are the answers to open questions"
    )
    with pytest.raises(BadInput) as caught:
        Task(Settings(), ("yes",))
    assert caught.value.message == ("task 'question': the only answer that training knows is 'yes'")
    assert Task(Settings(answers="choices"), ()).labels == ()


class Asking(world.Dataset):
    """The built-in world, which is asked how things move. In val one answer is no label, one is not known, and one question is
    open."""

    def clips(self) -> Iterator[Clip]:
        for clip in super().clips():
            is_rare = clip.split == "val" and clip.label == "clockwise"
            yield replace(clip, label=None) if is_rare else clip

    def texts(self, clip: Clip) -> ClipTexts:
        way = clip.video_id.rpartition("_")[0]
        if clip.split == "val" and way == "approaching":
            return ClipTexts(question="where?", choices=("left", "right"), kind="secret")
        if clip.split == "val" and way == "receding":
            return ClipTexts(question="how does the red dog jump?", answer=way, kind="open")
        choices = tuple(sorted({way, "left", "right"}))
        return ClipTexts(question="how?", answer=way, choices=choices, kind="way")


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentence_folder("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("asking")
    dataset = Asking(
        folder, world.Settings(clips_per_class=2, frames=4, size_px=32, val_fraction=0.5)
    )
    return write("world", dataset, folder)


@pytest.fixture(scope="module")
def cache(asking: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    config = {
        "model_type": "dinov3_vit",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_register_tokens": 0,
        "patch_size": 16,
        "image_size": 32,
    }
    encoder = {"name": "transformers", "layers": [0], "seed": 0, "config": config}
    table = {"name": "asking", "encoder": encoder, "frames": {"size_px": 32}}
    return extract(
        plugins.validate(CacheSpec, table, "test"), asking, tmp_path_factory.mktemp("caches")
    )


def recipe(tower: Path, **task: Any) -> Recipe:
    table = {
        "name": "asked",
        "task": {
            "name": "question",
            "readout_width": 16,
            "heads": 2,
            "layers": 1,
            "text": {"name": "sentence", "model": str(tower)},
            "text_width": 32,
        }
        | task,
        "temporal": {"name": "gru"},
        "windows": {"frames": 2, "fps": 6},
        "training": {"steps": 3, "batch_size": 4, "warmup_steps": 1},
    }
    return plugins.validate(Recipe, table, "test")


def test_open_questions_are_scored_kind_by_kind(tower: Path, cache: Cache, tmp_path: Path) -> None:
    run = train(recipe(tower), cache, tmp_path / "open")
    result = evaluate(run, cache)
    assert (result.clips_scored, result.clips_without_truth) == (7, 1)
    assert {kind: of.clips for kind, of in result.kinds.items()} == {"open": 1, "way": 6}
    assert list(result.kinds["way"].scores) == ["streaming", "window", "trivial"]
    for form in (*result.forms, "trivial"):
        parts = [of.clips * of.scores[form].score for of in result.kinds.values()]
        whole = (
            result.trivial["accuracy"]
            if form == "trivial"
            else result.forms[form]["accuracy"].score
        )
        assert sum(parts) / 7 == pytest.approx(whole)
    (rare,) = (scores for name, scores in result.clips.items() if name.startswith("clockwise"))
    assert rare.label is None and set(rare.scores.values()) == {0}
    # Whoever opens the run again hears the same.
    assert evaluate(Run(run.path), Cache(cache.path)) == result == read_evaluation(run.path, "val")


def test_choices_are_scored_where_there_are_some(tower: Path, cache: Cache, tmp_path: Path) -> None:
    run = train(recipe(tower, answers="choices", sees="question"), cache, tmp_path / "choices")
    result = evaluate(run, cache)
    assert result.clips_without_truth == 2 and list(result.kinds) == ["way"]
    assert any(name.startswith("clockwise") for name in result.clips), (
        "an answer that is a choice need be no label"
    )


def test_a_run_that_cannot_read_its_questions_says_why(
    tower: Path, cache: Cache, tmp_path: Path
) -> None:
    with pytest.raises(BadInput) as caught:
        train(recipe(tower, text_width=24), cache, tmp_path / "run")
    assert caught.value.message == (
        "task.text_width is 24, and embeddings of their tokens are 32 wide"
    )
    assert caught.value.hint == "task.text_width = 32"
    with pytest.raises(BadInput) as caught:
        train(recipe(tower, answers="choices", width=24), cache, tmp_path / "run")
    assert caught.value.message == "task.width is 24, and embeddings of texts are 32 wide"


def test_a_stream_answers_a_question_as_a_window_does(
    tower: Path, cache: Cache, tmp_path: Path
) -> None:
    run = train(recipe(tower), cache, tmp_path / "open")
    model, task = load_model(run, cache.shape)
    windows = RunContext.of(cache, device=CPU).windows("val", run.recipe, task, model.layers)
    (number,) = (n for n in range(len(windows)) if windows.clip(n).video_id.startswith("left_"))
    batch = windows.on_device(windows.read([WindowRef(number, 0.0)]), CPU)
    wanted = model.answers(batch, task)["streaming"][0]
    video = cache.manifest.root / windows.clip(number).source
    seen = list(Stream(run, CPU, ask=("how?",)).follow(video))
    np.testing.assert_allclose(seen[1].answer, wanted, atol=1e-3)
    other = list(Stream(run, CPU, ask=("does the red dog jump?",)).follow(video))
    assert np.abs(other[1].answer - seen[1].answer).max() > 1e-3
    drawn_HWC = Stream(run, CPU, ask=("how?",)).drawn(seen[1])
    assert drawn_HWC.shape[0] > seen[1].pixels_HWC.shape[0] and drawn_HWC.shape[2] == 3
    with pytest.raises(BadInput, match="is told a question in words, and is not told any"):
        next(Stream(run, CPU).follow(video))
    with pytest.raises(BadInput, match="a stream answers one question, found 2"):
        Stream(run, CPU, ask=("how?", "why?"))


def test_a_stream_chooses_as_a_window_does(tower: Path, cache: Cache, tmp_path: Path) -> None:
    run = train(recipe(tower, answers="choices"), cache, tmp_path / "choices")
    model, task = load_model(run, cache.shape)
    windows = RunContext.of(cache, device=CPU).windows("val", run.recipe, task, model.layers)
    (number,) = (n for n in range(len(windows)) if windows.clip(n).video_id.startswith("left_"))
    batch = windows.on_device(windows.read([WindowRef(number, 0.0)]), CPU)
    wanted = model.answers(batch, task)["streaming"][0]
    video = cache.manifest.root / windows.clip(number).source
    choices = cache.manifest.texts[windows.clip(number).clip_id].choices
    stream = Stream(run, CPU, ask=("how?",), choices=choices)
    last = list(stream.follow(video))[1]
    np.testing.assert_allclose(last.answer, wanted, atol=1e-3)
    said = stream.plain(last.answer, last)
    assert said == {
        "choice": int(wanted[0, 0]),
        "label": choices[int(wanted[0, 0])],
        "probability": pytest.approx(float(wanted[0, 1]), abs=1e-3),
    }
    with pytest.raises(BadInput) as caught:
        Stream(run, CPU, ask=("how?",), choices=("left",))
    assert caught.value.message == "this run chooses among answers, found 1 choice"


def test_an_open_question_has_no_choices(tower: Path, cache: Cache, tmp_path: Path) -> None:
    run = train(recipe(tower), cache, tmp_path / "open")
    with pytest.raises(BadInput, match="answers from its own labels, and chooses among none"):
        Stream(run, CPU, ask=("how?",), choices=("left", "right"))


@pytest.mark.parametrize(
    ("right", "ink"),
    [(1, RIGHT_INK), (0, WRONG_INK), (-1, WRONG_INK)],
    ids=["right", "wrong", "none"],
)
def test_an_answer_is_drawn_green_or_red(right: int, ink: tuple[int, int, int]) -> None:
    answer = np.array([[1, 0.7], [0, 0.3], [2, 0]], np.float32)
    pixels = np.zeros((2, 64, 64, 3), np.uint8)
    targets = {"right": np.array(right), "is_answered": np.array(True)}
    drawn = make().draw(pixels, answer, targets)
    inks = {tuple(pixel) for pixel in drawn.reshape(-1, 3).tolist()}
    assert len(drawn) == 2 and ink in inks
    other = WRONG_INK if ink == RIGHT_INK else RIGHT_INK
    assert other not in inks
    unknown = make().draw(pixels, answer, targets | {"is_answered": np.array(False)})
    assert ink not in {tuple(pixel) for pixel in unknown.reshape(-1, 3).tolist()}
