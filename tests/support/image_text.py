"""Small image-text models and sentence encoders with random weights, each with a tokeniser of its own, as their folders
on the hub are laid out."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
import transformers

MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)
LONGEST = 16
"""Tokens that a text tower reads."""
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
VISION = TEXT | {"hidden_size": 48, "patch_size": 8, "image_size": 32, "num_hidden_layers": 3}
LETTERS = string.ascii_letters + string.digits + ".,!?'"
WORDS = ("dog", "cat", "red", "a", "the", "jumps", "over", "fence")


def clip_tokenizer() -> Any:
    """Letters, and the ends of words; lower-case, as CLIP's is."""
    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "do", "dog</w>"]
    names = [*pieces, "<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: number for number, piece in enumerate(names)}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[("d", "o"), ("do", "g</w>")])


def gemma_tokenizer(kind: Any = transformers.GemmaTokenizer, **more: Any) -> Any:
    """Letters, and a line for blanks, with an end and no beginning, as SigLIP 2's is."""
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS, "do", "dog"]
    vocab = {piece: number for number, piece in enumerate(names)}
    return kind(
        vocab=vocab,
        merges=[("d", "o"), ("do", "g")],
        padding_side="right",
        add_bos_token=False,
        add_eos_token=True,
        model_input_names=["input_ids"],
        **more,
    )


def roberta_tokenizer(kind: Any = transformers.XLMRobertaTokenizer) -> Any:
    """Letters, each as likely as any other."""
    names = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "▁",
        *LETTERS,
        *(f"▁{word}" for word in WORDS),
        "<mask>",
    ]
    return kind(vocab=[(piece, -1.0 - 0.01 * number) for number, piece in enumerate(names)])


def bert_tokenizer(kind: Any = transformers.BertTokenizer) -> Any:
    names = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *LETTERS,
        *(f"##{letter}" for letter in LETTERS),
    ]
    return kind(vocab={piece: number for number, piece in enumerate(names)})


def _text_config(tokenizer: Any, **more: Any) -> dict[str, Any]:
    ids = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    return TEXT | ids | {"vocab_size": len(tokenizer), "max_position_embeddings": LONGEST} | more


FAMILIES = {
    "clip": (clip_tokenizer, {"projection_dim": 24}),
    "metaclip_2": (roberta_tokenizer, {"projection_dim": 24}),
    "siglip": (lambda: gemma_tokenizer(do_lower_case=True), {}),
    "siglip2": (lambda: gemma_tokenizer(transformers.Siglip2Tokenizer), {}),
}
"""Model type -> its tokeniser, and what its configuration says beside those of its halves. `siglip` stands for SigLIP 2
of a fixed resolution, too: its folders have this type, and Gemma's tokeniser."""


def save_image_text(family: str, folder: Path, seed: int = 0, **vision: Any) -> Path:
    """A whole image-text model of a family, with all files that its folder on the hub has."""
    make_tokenizer, more = FAMILIES[family]
    tokenizer = make_tokenizer()
    side = {"num_patches": 16} if family == "siglip2" else {}
    text = _text_config(
        tokenizer, **({"projection_size": 48} if family.startswith("siglip") else {})
    )
    config = transformers.AutoConfig.for_model(
        family, text_config=text, vision_config=VISION | side | vision, **more
    )
    torch.manual_seed(seed)
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():  # far enough from their start that each of them shows
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    normal = {"image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(normal))
    return folder


SENTENCE = {
    "albert": bert_tokenizer,
    "bert": bert_tokenizer,
    "camembert": roberta_tokenizer,
    "distilbert": bert_tokenizer,
    "electra": bert_tokenizer,
    "modernbert": bert_tokenizer,
    "mpnet": roberta_tokenizer,
    "roberta": roberta_tokenizer,
    "xlm-roberta": roberta_tokenizer,
}
"""Model type of a sentence encoder -> its tokeniser."""
OFFSET = ("camembert", "mpnet", "roberta", "xlm-roberta")
"""Those whose positions begin after that of padding."""


def sentence_folder(family: str, folder: Path, **more: Any) -> Path:
    """A whole sentence encoder of a family, with all files that its folder has."""
    tokenizer = SENTENCE[family]()
    sizes = {"albert": {"embedding_size": 16}, "electra": {"embedding_size": 16}}.get(family, {})
    if family == "distilbert":
        sizes = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}
    positions = LONGEST + (tokenizer.pad_token_id + 1 if family in OFFSET else 0)
    ids = {"pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer)}
    config = transformers.AutoConfig.for_model(
        family, **TEXT | ids | {"max_position_embeddings": positions} | sizes | more
    )
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def whole_model(folder: Path) -> Any:
    """The model of a folder as transformers reads it."""
    return transformers.AutoModel.from_pretrained(folder).eval()
