"""Addresses of repositories: `hf://user/name`, as a user writes it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from pipeline.errors import BadInput

PROTOCOL = "hf://"
KINDS = {"models": "model", "datasets": "dataset"}
"""How an address names a kind of repository -> how the hub calls it."""
ADDRESS = re.compile(r"hf://(?:(models|datasets)/)?([^/@]+)/([^/@]+)(?:@([^\s?#]+))?/?")
OTHERS = frozenset({"models", "datasets", "spaces", "buckets", "kernels"})
"""No user has one of these names."""
WANTED = "wanted hf://user/name, hf://user/name@revision or hf://datasets/user/name"
WEB = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(datasets/)?([^/]+/[^/?#]+).*")


@dataclass(frozen=True)
class HubAddress:
    """A repository of the hub."""

    repository: str
    """user/name."""
    kind: str | None = None
    """`model` or `dataset`. None: not said."""
    revision: str | None = None
    """A branch, a tag or a commit. None: the main branch."""

    @classmethod
    def parse(cls, text: str) -> HubAddress:
        """Raises BadInput for what is no address of a repository."""
        found = ADDRESS.fullmatch(text)
        if found is None or found[2] in OTHERS:
            web = WEB.fullmatch(text)
            hint = f"hf://{web[1] or ''}{web[2]}" if web else "look at the address"
            raise BadInput(f"'{text}' is no address of a repository: {WANTED}", hint)
        prefix, user, name, revision = found.groups()
        try:
            validate_repo_id(f"{user}/{name}")
        except HFValidationError as error:
            raise BadInput(
                f"'{text}' is no address of a repository: user and name have letters, digits, "
                "-, _ and ., at most 96 in all",
                "look at the address",
            ) from error
        return cls(f"{user}/{name}", KINDS.get(prefix or ""), revision)

    def of_kind(self, kind: str) -> HubAddress:
        """The same address, where it is said what kind of repository it is."""
        return replace(self, kind=kind)

    def at(self, revision: str | None) -> HubAddress:
        """The same repository at a revision."""
        return replace(self, revision=revision)

    def __str__(self) -> str:
        """The shortest text that says the same."""
        prefix = "datasets/" if self.kind == "dataset" else ""
        return f"{PROTOCOL}{prefix}{self.repository}" + (
            f"@{self.revision}" if self.revision else ""
        )

    @property
    def page(self) -> str:
        """Its page for people, without the hub's own name."""
        return f"{'datasets/' if self.kind == 'dataset' else ''}{self.repository}"


def is_hub_address(text: object) -> bool:
    """Whether this is meant as an address of the hub."""
    return isinstance(text, str) and text.startswith(PROTOCOL)
