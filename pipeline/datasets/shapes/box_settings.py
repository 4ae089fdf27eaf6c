"""Settings of a data set whose boxes lie in text files: where frames and truth are, and what stands
in a line of the truth.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from pipeline.datasets.formats.splits import Names, SplitSettings
from pipeline.datasets.shapes.box_columns import Columns, Condition
from pipeline.datasets.shapes.patterns import check_pattern, fields_of
from pipeline.errors import BadInput


class BoxSettings(SplitSettings):
    """Where frames and truth are, and what stands in a line of the truth."""

    frames: str = "{sequence}/img"
    """Pattern of the image folders or videos, below the root: `{sequence}` is the name of a
    sequence, other names in braces are fields to use in the other patterns, `*` is any part of a
    name, and `**` any number of folders. A field `{split}` is the split, where it begins with
    train, val or test."""
    truth: str = "{sequence}/groundtruth*.txt"
    """Pattern of the text files of a sequence; more than one are its objects."""
    columns: str = "x,y,w,h"
    """What the columns are, with a box that is x,y,w,h or cx,cy,w,h or x1,y1,x2,y2 or a polygon
    x1,y1,...,x4,y4 or, as in the VOT challenges, region. `frame` and `id` are the frame and the
    object of a line, other names serve in `keep`, `-` is not read, and `...` at the end is any
    more."""
    separator: Literal["any", "comma", "semicolon", "tab", "blank"] = "any"
    """What lies between columns; any: commas, semicolons, tabs and blanks, also several."""
    header_lines: int = Field(default=0, ge=0)
    """Lines at the beginning that are passed over; those that begin with # always are."""
    first_pixel: Literal[0, 1] = 0
    """What the first pixel is called; 1: a box begins at the pixel edge x - 1."""
    inclusive: bool = False
    """Whether x2, y2 are the last pixel inside of the box, and no edge."""
    fractions: bool = False
    """Whether coordinates are fractions of the frame, and not pixels."""
    frame_numbers: Literal["from_0", "from_1", "names"] = "from_1"
    """What the column `frame` calls the first frame; names: the numbers in the images' names."""
    rows_per_frame: int = Field(default=1, ge=1)
    """Lines for each frame, of which the first counts, as where the truth has more frames per
    second than the images."""
    keep: Names = ()
    """Conditions on columns, such as lost=0 or visibility>0.1; where a line does not fulfil all of
    them, its object is absent."""
    absent_files: Names = ()
    """Patterns of files with one number for each line of the truth, each with the condition under
    which the object is absent: {sequence}/full_occlusion.txt=1."""
    image_fps: float = Field(default=30.0, gt=0, le=1000)
    """Frame rate of image folders."""
    fps_file: str | None = None
    """Pattern of a file of `key = value` lines, a colon and the key that holds the frame rate of
    its sequence: {sequence}/seqinfo.ini:frameRate. Where there is none, `image_fps` counts."""
    spans: str | None = None
    """File that says which part of a video a sequence is: lines of sequence, video, first and last
    frame, counted from 1; or UAV123's configSeqs.m. A sequence that it does not name is the video
    of its name."""
    only: str | None = None
    """Pattern of lists of sequences, one name a line; where there are such files, all other
    sequences are passed over."""

    @field_validator("frames", "truth", "only")
    @classmethod
    def _is_path_pattern(cls, value: str | None, info: Any) -> str | None:
        return value if value is None else check_pattern(value, info.field_name)

    @field_validator("frames")
    @classmethod
    def _names_sequences(cls, value: str) -> str:
        if "sequence" not in fields_of(value):
            raise BadInput(f"frames: wanted {{sequence}} in the pattern, found '{value}'")
        return value

    @field_validator("columns")
    @classmethod
    def _are_columns(cls, value: str) -> str:
        Columns.parse(value, "columns")
        return value

    @field_validator("keep")
    @classmethod
    def _are_conditions(cls, value: tuple[str, ...], info: Any) -> tuple[str, ...]:
        names = (
            Columns.parse(info.data["columns"], "columns").names if info.data.get("columns") else ()
        )
        for text in value:
            rule = Condition.parse(text, "keep")
            if names and rule.name not in names:
                raise BadInput(f"keep: there is no column '{rule.name}' in {','.join(names)}")
        return value

    @field_validator("absent_files")
    @classmethod
    def _are_files(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            check_pattern(Condition.parse(text, "absent_files").name, "absent_files")
        return value

    @field_validator("fps_file")
    @classmethod
    def _has_key(cls, value: str | None) -> str | None:
        if value is not None:
            pattern, colon, key = value.rpartition(":")
            if not colon or not key:
                raise BadInput(
                    f"fps_file: wanted a pattern, a colon and a key, such as "
                    f"'{{sequence}}/seqinfo.ini:frameRate', found '{value}'"
                )
            check_pattern(pattern, "fps_file")
        return value
