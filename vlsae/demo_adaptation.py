"""The demo's adaptation part: the shipped tiny MaPLe against the tiny CLIP, under the demo's dictionary."""

from __future__ import annotations

from pathlib import Path

from vlsae.adaptation.comparison.comparison import Comparison, compare
from vlsae.adaptation.load import load_adapted
from vlsae.backbones.base import Backbone
from vlsae.dictionaries.base import Dictionary
from vlsae.world import scenes
from vlsae.world.layout import SceneOptions, drawable_names
from vlsae.world.tiny_clip import FOLDER

MAPLE = FOLDER.parent / "tiny_maple"
STYLE = {"n_objects": (1.0, 0.0, 0.0, 0.0), "styles": "held_out"}
MASKS = (1, 3, 10, 30, 100)


def maple_in_scenes(
    model: Backbone, dictionary: Dictionary, out: Path, *, n: int = 400, seed: int = 0, progress: bool = True
) -> Comparison:
    """Compare the tiny CLIP with its MaPLe on scenes of a style that CLIP never saw and MaPLe was tuned on.

    Args:
        model: the tiny CLIP.
        dictionary: of its patches.
        out: folder for the tables.
        n: scenes.
        seed: of scenes and resamples.
        progress: show progress bars.
    """
    names = sorted(drawable_names(SceneOptions(**STYLE)))
    drawn = scenes(n, seed=seed + 4000, **STYLE)
    comparison = compare(
        model, load_adapted(model, MAPLE), dictionary, drawn, class_names=names, templates=("{}",),
        labels=[names.index(scene.objects[0].name) for scene in drawn], masks=MASKS, seed=seed, progress=progress,
    )  # fmt: skip
    comparison.save(out)
    return comparison
