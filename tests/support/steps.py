"""Small models of any temporal module and task, of random weights, in evaluation mode."""

from __future__ import annotations

import torch

from pipeline.config import plugins
from pipeline.config.recipe import Recipe
from pipeline.models.tasks.contract import STREAMING, TaskPlugin, make_task
from pipeline.models.video_model import VideoModel
from pipeline.records import TokenShape

SHAPE = TokenShape(width=8, grid_hw=(2, 3), special_tokens=2, layers=(1, 3))
LABELS = ("a", "b", "c")
TEMPORAL = {"layers": 1, "heads": 2, "state": 3, "history": 4}
TASK = {
    "readout_width": 8,
    "heads": 2,
    "hidden": 8,
    "size_px": 8,
    "patch_px": 4,
    "text_width": 6,
    "width": 8,
}

READOUTS = [
    ("classify", {}),
    ("boxes", {}),
    ("boxes", {"start": "still", "reads": "both", "look": "updated"}),
    ("boxes", {"start": "likeness", "reads": "both", "look": "updated"}),
    ("points", {}),
    ("points", {"start": "still", "reads": "both", "look": "told"}),
    ("points", {"start": "likeness", "reads": "both", "look": "updated"}),
    ("depth", {}),
    ("pose", {}),
    ("question", {}),
    ("question", {"answers": "choices"}),
    ("classify", {"prompts": ["a {}."]}),
    ("retrieve", {"zero_shot": True}),
    ("retrieve", {"zero_shot": False}),
    ("forecast", {}),
    ("contrast", {}),
    ("segment", {}),
]
"""(task, settings): every readout that answers frame by frame."""


def small_recipe(temporal: str, task: str, **settings: object) -> Recipe:
    """Only the streaming form where the task has a choice."""

    def table(kind: str, name: str, small: dict[str, object]) -> dict[str, object]:
        fields = plugins.load(kind, name).Settings.model_fields
        return {"name": name, **{key: value for key, value in small.items() if key in fields}}

    return plugins.validate(
        Recipe,
        {
            "name": "small",
            "task": table("task", task, {**TASK, "forms": (STREAMING,)}) | settings,
            "temporal": table("temporal", temporal, TEMPORAL),
            "windows": {"frames": 8, "fps": 8},
            "training": {"steps": 1},
        },
        "test",
    )


def made(temporal: str, task: str, **settings: object) -> tuple[VideoModel, TaskPlugin]:
    recipe = small_recipe(temporal, task, **settings)
    torch.manual_seed(0)
    plugin = make_task(recipe, LABELS)
    model = VideoModel(recipe, SHAPE, plugin)
    for part in (*model.parameters(), *plugin.parameters()):
        if part.dim() > 1 and not part.any():  # what is 0 before training would hide what it does
            torch.nn.init.normal_(part, std=0.1)
    return model.eval().requires_grad_(False), plugin.eval().requires_grad_(False)
