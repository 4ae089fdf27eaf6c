"""Text towers against transformers' own models, processors and pooling."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.image_text import (
    FAMILIES,
    LONGEST,
    SENTENCE,
    save_image_text,
    sentence_folder,
    whole_model,
)
from torch.nn import functional

from pipeline.config.cache_spec import choice
from pipeline.errors import BadInput
from pipeline.models.text.contract import TextPlugin, make_text

TEXTS = ["A dog jumps over the red fence", "cat", "a Cat!"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread(_threads: None) -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One whole image-text model per family. Read only."""
    root = tmp_path_factory.mktemp("image_text")
    return {family: save_image_text(family, root / family) for family in FAMILIES}


def tower(name: str, **table: Any) -> TextPlugin:
    return make_text(choice("text", {"name": name, **table}), CPU)


def refusal(name: str, **table: Any) -> BadInput:
    with pytest.raises(BadInput) as caught:
        tower(name, **table)
    assert "\n" not in caught.value.message
    return caught.value


def own_inputs(family: str, folder: Path, texts: list[str]) -> Any:
    """What the model's own tokeniser makes of texts, called as its documentation says; SigLIP 2 reads lower-case ones."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    padding = "max_length" if family.startswith("siglip") else True
    shown = [text.lower() for text in texts] if family.startswith("siglip") else texts
    return tokenizer(
        shown, padding=padding, truncation=True, max_length=LONGEST, return_tensors="pt"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_embedded_as_the_whole_model_does(family: str, folders: dict[str, Path]) -> None:
    folder = folders[family]
    inputs, model = own_inputs(family, folder, TEXTS), whole_model(folder)
    with torch.no_grad():
        own = model.get_text_features(**inputs)
    made = tower("image_text", model=str(folder))
    said = made(TEXTS)
    expected_ND = functional.normalize(own.pooler_output, dim=-1)
    assert said.pooled_ND.shape == (3, made.width) and said.pooled_ND.dtype == torch.float32
    torch.testing.assert_close(said.pooled_ND, expected_ND, rtol=0, atol=1e-6)
    torch.testing.assert_close(said.tokens_NLD, own.last_hidden_state, rtol=0, atol=1e-5)
    assert said.tokens_NLD.shape == (3, inputs["input_ids"].shape[1], made.token_width)
    assert made.logits is not None
    own_bias = model.logit_bias.item() if hasattr(model, "logit_bias") else 0.0
    assert made.logits == pytest.approx((model.logit_scale.exp().item(), own_bias))
    # Texts that differ are told apart, also far below the tolerance above.
    assert (expected_ND @ expected_ND.T)[~torch.eye(3, dtype=torch.bool)].max() < 0.9999


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_has_one_embedding_and_padding_is_masked(
    family: str, folders: dict[str, Path]
) -> None:
    made = tower("image_text", model=str(folders[family]))
    together, alone = made(TEXTS), made(TEXTS[1:2])
    torch.testing.assert_close(together.pooled_ND[1:2], alone.pooled_ND, rtol=0, atol=1e-6)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[family])
    shown = [text.lower() for text in TEXTS] if family.startswith("siglip") else TEXTS
    lengths = [min(len(ids), LONGEST) for ids in tokenizer(shown)["input_ids"]]
    assert together.mask_NL.sum(1).tolist() == lengths
    assert together.mask_NL[1, : lengths[1]].all()
    full = LONGEST if family.startswith("siglip") else max(lengths)
    assert together.mask_NL.shape == (3, full)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_processor_of_transformers_makes_the_same_tokens(
    family: str, folders: dict[str, Path]
) -> None:
    """Lower-case texts for Gemma's tokeniser, which forgets that it is to make them so."""
    kinds = {
        "clip": transformers.CLIPProcessor,
        "metaclip_2": transformers.CLIPProcessor,
        "siglip": transformers.SiglipProcessor,
        "siglip2": transformers.Siglip2Processor,
    }
    images = (
        transformers.SiglipImageProcessor()
        if family.startswith("siglip")
        else transformers.CLIPImageProcessor()
    )
    if family == "siglip2":
        images = transformers.Siglip2ImageProcessor()
    own_tokenizer = transformers.AutoTokenizer.from_pretrained(folders[family])
    processor = kinds[family](image_processor=images, tokenizer=own_tokenizer)
    texts = [text.lower() for text in TEXTS] if family == "siglip" else TEXTS
    padding = (
        {} if family == "siglip2" else {"padding": "max_length" if family == "siglip" else True}
    )
    own = processor(text=texts, max_length=LONGEST, truncation=True, return_tensors="pt", **padding)
    made: Any = tower("image_text", model=str(folders[family]))
    read, _, _ = made._tokenizer(TEXTS)
    assert read.keys() == own.keys()
    assert all(torch.equal(read[name], own[name]) for name in read)


def test_long_texts_are_cut_and_counted(folders: dict[str, Path]) -> None:
    for family, folder in folders.items():
        made = tower("image_text", model=str(folder))
        long = "a dog jumps over the fence and " * 3
        said = made([long, "cat", f"{long} runs on"])
        assert made.most_tokens == LONGEST
        assert (said.cut, said.tokens_NLD.shape[1]) == (2, LONGEST), family
        torch.testing.assert_close(said.pooled_ND[0], said.pooled_ND[2], rtol=0, atol=1e-6)


def test_empty_texts_are_refused(folders: dict[str, Path]) -> None:
    made = tower("image_text", model=str(folders["clip"]))
    with pytest.raises(BadInput, match="^text 2 of 3 is empty$"):
        made(["cat", " \t", "dog"])
    with pytest.raises(BadInput, match="no text to embed"):
        made([])


def test_the_template_is_what_is_read(folders: dict[str, Path]) -> None:
    folder = str(folders["clip"])
    framed = tower("image_text", model=folder, template="a photo of {}")
    plain = tower("image_text", model=folder)
    assert torch.equal(framed(["cat {x}"]).pooled_ND, plain(["a photo of cat {x}"]).pooled_ND)
    for wrong in ("a photo", "{} and {}"):
        with pytest.raises(BadInput, match="wanted {} once"):
            tower("image_text", model=folder, template=wrong)


def test_the_identity_changes_when_embeddings_would(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    first = tower("image_text", model=str(folders["clip"])).identity
    assert json.loads(json.dumps(first)) == first
    again = save_image_text("clip", tmp_path / "again")
    assert tower("image_text", model=str(again)).identity == first
    other = tower("image_text", model=str(save_image_text("clip", tmp_path / "other", seed=1)))
    assert {key for key in first if other.identity[key] != first[key]} == {"weights"}
    assert tower("image_text", model=str(again), template="{}!").identity != first
    file = again / "tokenizer.json"
    table = json.loads(file.read_text())
    table["model"]["merges"] = []
    file.write_text(json.dumps(table))
    retold = tower("image_text", model=str(again)).identity
    assert {key for key in first if retold[key] != first[key]} == {"tokenizer"}


def test_gradients_and_the_global_generator_are_left_alone(folders: dict[str, Path]) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    said = tower("image_text", model=str(folders["siglip"]))(["cat"])
    assert torch.equal(torch.rand(1), expected)
    assert not said.pooled_ND.requires_grad


def test_siglips_own_tokeniser_is_not_replaced_by_another(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Without the package that it needs, transformers reads tokenizer.json, which keeps case and punctuation."""
    folder = shutil.copytree(folders["siglip"], tmp_path / "siglip")
    file = folder / "tokenizer_config.json"
    file.write_text(file.read_text().replace('"GemmaTokenizer"', '"SiglipTokenizer"'))
    error = refusal("image_text", model=str(folder))
    assert error.hint == "pip install sentencepiece protobuf"


def test_a_vocabulary_in_files_of_earlier_years_is_read(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["clip"], tmp_path / "clip")
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    own, earlier = (tower("image_text", model=str(one)) for one in (folders["clip"], folder))
    assert torch.equal(own(TEXTS).pooled_ND, earlier(TEXTS).pooled_ND)
    (folder / "merges.txt").unlink()
    assert "has no tokeniser" in refusal("image_text", model=str(folder)).message


def test_a_tokeniser_of_another_model_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["siglip"], tmp_path / "siglip")
    shutil.copy(folders["metaclip_2"] / "tokenizer.json", folder)
    shutil.copy(folders["metaclip_2"] / "tokenizer_config.json", folder)
    made = tower("image_text", model=str(folder))
    with pytest.raises(BadInput, match="has more tokens than the"):
        made(["a fence"])


def test_a_tokeniser_of_gigabytes_is_not_read(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["clip"], tmp_path / "clip")
    with (folder / "special_tokens_map.json").open("wb") as file:
        file.truncate(2**31)  # without blocks on the disk
    assert "more than the 268,435,456" in refusal("image_text", model=str(folder)).message


def test_a_tokeniser_cannot_bring_code(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["clip"], tmp_path / "clip")
    (folder / "ours.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Ours: pass\n")
    for name in ("tokenizer_config.json", "config.json"):
        table = json.loads((folder / name).read_text(), parse_int=float)
        table["auto_map"] = {"AutoTokenizer": ["ours.Ours", None], "AutoConfig": "ours.Ours"}
        table.pop("tokenizer_class", None)
        (folder / name).write_text(json.dumps(table))
    try:
        tower("image_text", model=str(folder))
    except BadInput as error:
        assert "\n" not in error.message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tower_is_made_in_silence(family: str, folders: dict[str, Path]) -> None:
    """transformers warns of the token ids that its own defaults name for SigLIP."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("transformers").addHandler(handler)
    transformers.utils.logging.warning_once.cache_clear()  # as in a new process
    try:
        tower("image_text", model=str(folders[family]))(TEXTS)
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert said == []


def test_folders_that_cannot_be_read_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = save_image_text("clip", tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    kept = {name: x for name, x in weights.items() if name != "text_projection.weight"}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    error = refusal("image_text", model=str(folder))
    assert "lacks 1 weights" in error.message and "text_projection.weight" in error.message
    (folder / "tokenizer.json").unlink()  # tokenizer_config.json stays: it knows no words
    assert "has no tokeniser" in refusal("image_text", model=str(folder)).message
    vision = whole_model(folders["siglip"]).vision_model
    vision.save_pretrained(tmp_path / "vision")
    alone = refusal("image_text", model=str(tmp_path / "vision"))
    assert "has no text half: its type is siglip_vision_model" in alone.message
    assert "there is none of that name" in refusal("image_text", model="./nowhere").message


@pytest.mark.parametrize("family", SENTENCE)
def test_a_sentence_is_the_mean_of_its_tokens(family: str, tmp_path: Path) -> None:
    folder = sentence_folder(family, tmp_path)
    made = tower("sentence", model=str(folder))
    assert (made.most_tokens, made.logits) == (LONGEST, None)
    said = made(TEXTS)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for number, text in enumerate(TEXTS):  # one by one: nothing is padded
        inputs = tokenizer(text, truncation=True, max_length=LONGEST, return_tensors="pt")
        with torch.no_grad():
            tokens_LD = model(**inputs).last_hidden_state[0]
        expected_D = functional.normalize(tokens_LD.mean(0), dim=0)
        torch.testing.assert_close(said.pooled_ND[number], expected_D, rtol=0, atol=2e-6)
        mask_L = said.mask_NL[number]
        torch.testing.assert_close(said.tokens_NLD[number][mask_L], tokens_LD, rtol=0, atol=2e-5)
    assert made(["dog " * 99, "cat"]).cut == 1


def test_what_pools_or_reads_otherwise_is_refused(tmp_path: Path) -> None:
    folder = sentence_folder("bert", tmp_path / "bert")
    (folder / "1_Pooling").mkdir()
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True, "word_embedding_dimension": 32}))
    assert (
        "pools tokens by pooling_mode_cls_token" in refusal("sentence", model=str(folder)).message
    )
    pooling.write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 6}))
    made = tower("sentence", model=str(folder))
    assert (made.most_tokens, made(["a dog jumps over the fence"]).cut) == (6, 1)
    decoder = sentence_folder("bert", tmp_path / "decoder", is_decoder=True)
    assert "is a decoder" in refusal("sentence", model=str(decoder)).message


def test_a_tower_of_another_kind_is_named(folders: dict[str, Path]) -> None:
    error = refusal("sentence", model=str(folders["clip"]))
    assert "no sentence encoder called 'clip'" in error.message
