"""A trained run on a video as it comes, which after every frame also says what it will say of later
ones: another run forecasts the tokens that it then reads. Frames are encoded once for both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.models.ahead import Following, ReadAhead
from pipeline.models.tasks.contract import Query
from pipeline.models.tasks.parts.canvas import concat_width, with_caption
from pipeline.train.ahead.pair import beyond_training, horizons_of, require_pair
from pipeline.train.run import Run, load_model
from pipeline.train.stream import Seen, Stream


class StreamAhead(Stream):
    """As `Stream`, with answers told ahead beside each."""

    def __init__(
        self,
        run: Run,
        forecaster: Run,
        asked_s: Sequence[float] = (),
        device: torch.device | None = None,
        encoder: Mapping[str, Any] | None = None,
    ) -> None:
        """`asked_s`: how far ahead answers are told, in seconds, as `pair.horizons_of` takes them;
        none: the forecaster's own horizons. Raises BadInput as `Stream` does, and where the two
        runs do not go together."""
        require_pair(run, forecaster)
        self.asked_s = tuple(asked_s or forecaster.recipe.task.settings.horizons_s)
        step = run.recipe.windows.step()
        assert step is not None
        horizons_of(self.asked_s, None if step.in_rows else step.size)
        super().__init__(run, device, encoder)
        model, _ = load_model(forecaster, self.shape, device=self.device)
        self.both = ReadAhead(self.model, model)
        self.layers = tuple(sorted({*self.model.layers, *model.layers}))
        self.note = beyond_training(forecaster, self.asked_s)
        """What is to be said of horizons that the forecaster has not learnt; "" where it has."""
        self._steps: dict[str, int] = {}
        self._ahead_s_1J = torch.zeros(1, 0)

    def follow(
        self,
        path: Path,
        asked: Mapping[str, Any] | None = None,
        start_s: float = 0.0,
        image_fps: float | None = None,
    ) -> Iterator[Seen]:
        """As `Stream.follow`, with answers told ahead beside each. Forecasts are of whole steps of
        the stream, up to those nearest to what was asked for: when the next frames will really be
        shown, a stream does not know."""
        self._begin(1 / self.fps_of(path, image_fps))
        return super().follow(path, asked, start_s, image_fps)

    def _begin(self, step_s: float) -> None:
        ahead_s = horizons_of(self.asked_s, step_s)
        self._steps = {f"{each_s:.3g}": round(each_s / step_s) for each_s in ahead_s}
        frames = max(self._steps.values())
        times_s = step_s * np.arange(1, frames + 1, dtype=np.float64)
        self._ahead_s_1J = torch.from_numpy(times_s.astype(np.float32))[None].to(self.device)

    def drawn(self, seen: Seen) -> np.ndarray:
        """The frame with its answer, and beside it once more with each answer told ahead, uint8 (H,
        W, 3); below them, for when."""
        panels = [super().drawn(seen)]
        for ahead_s, answer in seen.ahead.items():
            pixels = self.task.draw(seen.pixels_HWC[None], answer, {})[0]
            later_s = seen.time_s + float(ahead_s)
            words = f"told for {later_s:.2f} s, on the frame of {seen.time_s:.2f} s"
            panels.append(with_caption(pixels, words))
        return concat_width(panels)

    @property
    def state_bytes(self) -> int:
        forecaster = self.both.forecaster
        of_forecaster = forecaster.temporal.state_bytes(forecaster.tokens_per_frame)
        return super().state_bytes + of_forecaster

    def _start(self, query: Query) -> Following:
        return self.both.start(1, query)

    def _step(
        self, special_1SD: torch.Tensor, patches: Mapping[int, torch.Tensor], state: Following
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor], Following]:
        prediction, present = self.both.step(special_1SD, patches, state)
        told = list(self.both.told(present, self._ahead_s_1J))
        ahead = {ahead_s: told[steps - 1] for ahead_s, steps in self._steps.items()}
        return prediction, ahead, present.states
