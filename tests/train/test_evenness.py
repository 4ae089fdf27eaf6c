"""Windows that repeat a frame or step unevenly are counted, said, and refused where that is asked."""

from __future__ import annotations

import pytest

from pipeline.config.recipe import WindowSettings
from pipeline.errors import BadInput
from pipeline.train.windows.evenness import uneven_windows_text, unevenness
from pipeline.train.windows.windows import Windows


def windows(material, **settings) -> Windows:
    return Windows(material.cache, material.manifest, "train", WindowSettings(**settings))


@pytest.mark.parametrize("pace", [{"fps": 10}, {"fps": 5}, {"fps": 2.5}, {"every": 3}])
def test_rates_that_divide_the_videos_are_even(material, pace):
    even = windows(material, frames=4, **pace)
    assert unevenness(even.index).uneven == 0 and uneven_windows_text(even) == ""


def test_windows_are_counted_at_every_start(material):
    """At 6 of 10 frames a second steps are of 1 or 2 frames: 2, 2, 1, 2, 2, 1 and so on."""
    settings = {"frames": 4, "fps": 6}
    uneven = windows(material, **settings)
    found = unevenness(uneven.index)
    starts = sum(uneven.index.last_start(clip) + 1 for clip in range(len(uneven.index)))
    assert found == (starts, 0, starts, pytest.approx(1.0, abs=0.01))
    text = uneven_windows_text(uneven)
    assert text.startswith("100 % of windows have steps of different lengths, by up to 100 %")
    assert "10 frames a second: 2, 2.5, 3.33, 5 or 10 would be even" in text
    with pytest.raises(BadInput, match="would be even"):
        uneven_windows_text(windows(material, **settings, uneven="refuse"))
