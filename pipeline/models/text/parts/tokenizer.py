"""Texts become token ids, as the tokeniser in a model's folder makes them, and go through a tower
in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional

from pipeline.config.regular_files import read_regular
from pipeline.errors import BadInput
from pipeline.models.encoders.tower.config import quiet, reason
from pipeline.models.text.contract import PLACE, TextEmbeddings

VOCABULARIES = [
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
]
"""Files that say which tokens there are; a model has one of these. Without them transformers makes
a tokeniser that knows no words."""
TOKENIZER_FILES = [
    *(name for names in VOCABULARIES for name in names),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
]
"""All files that say how texts are cut into tokens; a model has some of them."""
MOST_BYTES = 2**28
"""Largest file of a tokeniser that is read; those of the largest vocabularies are some 30 MB."""
BATCH_TEXTS = 64
SIGLIP = "SiglipTokenizer"
"""The class that leaves punctuation out, which its file tokenizer.json need not do."""
PACKAGES = "pip install sentencepiece protobuf"

Padding = Literal["longest", "max_length"]
Run = Callable[[dict[str, torch.Tensor], torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Token ids and what else a tower reads, (N, L), and what of it is no padding -> pooled (N, D) and
tokens (N, L, D)."""


class TextTokenizer:
    """The tokeniser of a model that users know as `model`, whose tower reads up to `most_tokens`
    tokens of a text and knows `vocabulary` of them. Raises BadInput where its folder has none that
    can be read."""

    def __init__(
        self, model: str, folder: Path, most_tokens: int, vocabulary: int, padding: Padding
    ) -> None:
        import transformers

        self.files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
        there = {file.name for file in self.files}
        if not any(there.issuperset(names) for names in VOCABULARIES):
            raise BadInput(
                f"model {model} has no tokeniser: its folder has neither tokenizer.json nor "
                "another vocabulary",
                f"fetch all of its files: hf download {model}",
            )
        for file in self.files:
            if file.stat().st_size > MOST_BYTES:
                raise BadInput(
                    f"{file} has {file.stat().st_size:,} bytes, more than the {MOST_BYTES:,} of a "
                    "tokeniser that are read"
                )
        is_siglip = self._is_siglip(folder / "tokenizer_config.json")
        try:
            with quiet():
                self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                    folder, trust_remote_code=False, local_files_only=True
                )
        except Exception as error:  # transformers fails in any way over what it did not foresee
            raise BadInput(
                f"model {model}: its tokeniser cannot be used: {reason(error)}",
                PACKAGES if is_siglip else "fetch it again",
            ) from error
        # Where the packages are not there, transformers takes another class without a word.
        if is_siglip and self._ids(["a dog."]) != self._ids(["A dog"]):
            raise BadInput(
                f"model {model}: its tokeniser is a {SIGLIP}, which needs packages that are not "
                "installed",
                PACKAGES,
            )
        if self._tokenizer.pad_token_id is None:
            raise BadInput(
                f"model {model}: its tokeniser has no token that pads short texts",
                "wanted a pad_token in its tokenizer_config.json",
            )
        self.most_tokens = min(most_tokens, self._tokenizer.model_max_length)
        self._model, self._padding, self._vocabulary = model, padding, vocabulary
        # Gemma's tokeniser keeps this key of SigLIP 2's file and does not act on it; those that do
        # give the same for lower-case texts.
        self._lower = self._tokenizer.init_kwargs.get("do_lower_case") is True

    @staticmethod
    def _is_siglip(file: Path) -> bool:
        """Whether a file tokenizer_config.json names this class. Its text is searched: numbers in
        such files are longer than those that are read from JSON elsewhere."""
        return file.is_file() and f'"{SIGLIP}"'.encode() in read_regular(file, MOST_BYTES)

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the names and the content of the tokeniser's files."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            digest.update(read_regular(file, MOST_BYTES))
        return digest.hexdigest()

    def __call__(self, texts: Sequence[str]) -> tuple[dict[str, torch.Tensor], torch.Tensor, int]:
        """What the model reads of each text, (N, L); bool (N, L), what of it is no padding; and how
        many texts were cut."""
        shown = [text.lower() for text in texts] if self._lower else list(texts)
        cut = sum(len(ids) > self.most_tokens for ids in self._ids(shown))
        inputs = self._tokenizer(
            shown,
            padding=self._padding,
            truncation=True,
            max_length=self.most_tokens,
            return_attention_mask=True,
            return_tensors="pt",
        )
        highest = int(inputs["input_ids"].max())
        if highest >= self._vocabulary:
            raise BadInput(
                f"model {self._model}: its tokeniser has more tokens than the {self._vocabulary} "
                f"of its text tower: the {highest}th is in these texts",
                "fetch all of its files again: they are of different models",
            )
        # What the model reads is for its tokeniser to say: SigLIP is trained to read padding.
        read = {name: inputs[name] for name in self._tokenizer.model_input_names if name in inputs}
        return read, inputs["attention_mask"].bool(), cut

    def _ids(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        return ids


@torch.inference_mode()
def embed(
    tokenizer: TextTokenizer, run: Run, texts: Sequence[str], template: str, device: torch.device
) -> TextEmbeddings:
    """Texts in their template through a tower. Raises BadInput where there is no text, or an empty
    one."""
    if not texts:
        raise BadInput("there is no text to embed", "give at least one")
    empty = next((number for number, text in enumerate(texts, 1) if not text.strip()), None)
    if empty is not None:
        raise BadInput(f"text {empty} of {len(texts)} is empty", "wanted a word or a sentence")
    inputs, mask_NL, cut = tokenizer([template.replace(PLACE, text) for text in texts])
    mask_NL = mask_NL.to(device)
    pooled, tokens = [], []
    for start in range(0, len(texts), BATCH_TEXTS):
        batch = slice(start, start + BATCH_TEXTS)
        part = {name: values[batch].to(device) for name, values in inputs.items()}
        pooled_ND, tokens_NLD = run(part, mask_NL[batch])
        pooled.append(functional.normalize(pooled_ND, dim=-1))
        tokens.append(tokens_NLD)
    return TextEmbeddings(torch.cat(pooled), torch.cat(tokens), mask_NL, cut)
