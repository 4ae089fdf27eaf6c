"""Tokens as their first principal components: a basis is fitted once, to a sample of the cache's
own frames.

Each token array (special tokens, every layer) has its own mean and basis, which the cache keeps.
What lies outside the kept components is lost, so this codec, unlike the others, has no small error
bound: look at `stillframe bench codecs` first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from pipeline.cache.codecs._rounding import from_int8, half_step, int8_error, refuse_beyond, to_int8
from pipeline.cache.codecs.contract import FittedCodec
from pipeline.config import plugins
from pipeline.device import downloaded

LIMITS = {"float16": (65520.0, 65504.0), "int8": (float("inf"), torch.finfo(torch.float32).max)}
"""Coefficients: from where on they cannot be held, and where the format ends."""


class Codec(FittedCodec):
    """(x - mean) @ basis. Coefficients are computed in float64, so that their rounding does not
    follow the batch's shape."""

    class Settings(plugins.Settings):
        """Numbers that are kept of a token."""

        components: int = Field(default=128, ge=1)
        """Components that are kept; of narrower tokens, all."""
        coefficients: Literal["float16", "int8"] = "float16"
        """Number format of the coefficients; int8: with one float32 scale per token."""
        frames: int = Field(default=256, ge=1)
        """Frames in the sample that the basis is fitted to."""

    @property
    def sample_frames(self) -> int:
        frames: int = self.settings.frames
        return frames

    def layout(self, width: int) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        kept = min(self.settings.components, width)
        if self.settings.coefficients == "int8":
            return {"": ((kept,), np.dtype(np.int8)), "scale": ((), np.dtype(np.float32))}
        return {"": ((kept,), np.dtype(np.float16))}

    def fit(self, tokens_MD: torch.Tensor) -> dict[str, np.ndarray]:
        """`mean` (D,) and `basis` (D, K), orthonormal columns by falling variance, each with its
        largest entry positive."""
        x_MD = tokens_MD.detach().cpu().double()
        mean_D = x_MD.mean(0)
        centred_MD = x_MD - mean_D
        _, vectors_DD = torch.linalg.eigh(centred_MD.T @ centred_MD)  # by rising variance
        basis_DK = vectors_DD.flip(1)[:, : self.settings.components]
        largest = basis_DK.gather(0, basis_DK.abs().argmax(0, keepdim=True))
        return {
            "mean": mean_D.float().numpy(),
            "basis": (basis_DK * largest.sign()).float().contiguous().numpy(),
        }

    def load(self, learnt: Mapping[str, np.ndarray]) -> None:
        self._host = torch.from_numpy(learnt["mean"]), torch.from_numpy(learnt["basis"])
        self._moved: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def encode(self, tokens_FND: torch.Tensor) -> dict[str, np.ndarray]:
        refuse_beyond("pca", tokens_FND, *LIMITS["int8"])
        coefficients = self._project(tokens_FND).float()
        refuse_beyond("pca", coefficients, *LIMITS[self.settings.coefficients])
        if self.settings.coefficients == "int8":
            levels, scale = to_int8(coefficients)
            return {"": downloaded(levels), "scale": downloaded(scale)}
        return {"": downloaded(coefficients.half())}

    def decode(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        mean_D, basis_DK = self._on(arrays[""].device)
        return self._coefficients(arrays) @ basis_DK.T + mean_D

    def kept(self, tokens_FND: torch.Tensor) -> torch.Tensor:
        """Their share in the kept components, in float32."""
        mean_D, basis_DK = self._on(tokens_FND.device)
        return (tokens_FND.float() - mean_D) @ basis_DK @ basis_DK.T + mean_D

    def max_error(self, tokens_FND: torch.Tensor) -> torch.Tensor:
        """The sum of what the projection loses of each value, the rounding of the coefficients, and
        that of decoding in float32."""
        mean_D, basis_DK = (part.double() for part in self._on(tokens_FND.device))
        coefficients = self._project(tokens_FND)
        lost = (tokens_FND.detach().double() - mean_D - coefficients @ basis_DK.T).abs()
        reach, rounding = basis_DK.abs().T, self._rounding(coefficients).double()
        return lost + rounding @ reach + (coefficients.abs() @ reach + mean_D.abs()) * 2.0**-18

    def noise(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        """The mean square of the rounding in each token, as it is expected: that of its
        coefficients, spread over its width, since an orthonormal basis keeps squares."""
        rounding = self._rounding(self._coefficients(arrays))
        width = len(self._host[0])
        return rounding.square().sum(-1) / (3 * width)

    def _coefficients(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        """The coefficients that `arrays` hold, as they were stored, in float32."""
        if self.settings.coefficients == "int8":
            return from_int8(arrays[""], arrays["scale"])
        return arrays[""].float()

    def _rounding(self, coefficients: torch.Tensor) -> torch.Tensor:
        """The most that storing each of the coefficients changes it, as large as it can be."""
        if self.settings.coefficients == "int8":
            return int8_error(coefficients)
        return half_step(coefficients, digits=11, least=-14)

    def _project(self, tokens_FND: torch.Tensor) -> torch.Tensor:
        mean_D, basis_DK = (part.double() for part in self._on(tokens_FND.device))
        return (tokens_FND.detach().double() - mean_D) @ basis_DK

    def _on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and basis on `device`; moved there once."""
        if device not in self._moved:
            mean_D, basis_DK = self._host
            self._moved[device] = mean_D.to(device), basis_DK.to(device)
        return self._moved[device]
