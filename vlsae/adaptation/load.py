"""`load_adapted`: learned weights from our own folders and from those that others published."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlsae.adaptation.adapted import AdaptedBackbone
from vlsae.adaptation.checkpoint import CONFIG, AdaptationError, read_adaptation
from vlsae.adaptation.files import read_file, read_folder
from vlsae.adaptation.layout import LAYOUTS, Found, Layout
from vlsae.backbones.base import Backbone


def load_adapted(
    base: Backbone, path_or_folder: str | Path, class_names: Sequence[str] | None = None, **given: Any
) -> AdaptedBackbone:
    """Open learned weights of a CLIP: what `adapt` wrote, or what the methods' own code published.

    Layouts are recognised by the names and shapes of their tensors: Dassl's `.pth.tar` (CoOp, CoCoOp, KgCoOp, VPT, IVLP,
    PromptSRC, MaPLe), CLIP-LoRA's `.pt`, PEFT folders, open_clip's `epoch_K.pt`, Hugging Face folders, Tip-Adapter's
    caches and CLIP-Adapter. Every tensor must find its place; frozen weights in the file must be the base model's.

    Args:
        base: the model that it was trained on, float32.
        path_or_folder: a weight file, or a folder.
        class_names: of its head, in order, where the weights are bound to classes.
        **given: what the file does not say, such as `position` of CoOp, `ratio` of CLIP-Adapter, `alpha` and `beta` of
            Tip-Adapter; published defaults are used with a warning.

    Returns:
        An `AdaptedBackbone`.

    Raises:
        AdaptationError: for an unknown or damaged file, tensors that do not fit, or another base model. A pickle that
            holds anything but tensors and plain values is refused and not executed.

    Example:
        >>> import tempfile, torch
        >>> from vlsae import load_model
        >>> tiny = load_model("tiny")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": {"ctx": torch.randn(4, 128)}, "epoch": 50}, f"{folder}/model.pth.tar-50")
        ...     adapted = load_adapted(tiny, f"{folder}/model.pth.tar-50", position="end")
        >>> adapted.spec, adapted.classifier(["cat", "dog"]).shape
        ('tiny+coop', torch.Size([2, 192]))
    """
    path = Path(path_or_folder)
    if not path.exists():
        raise AdaptationError(f"{path} does not exist; give a weight file, or a folder of an adaptation.")
    if (path / CONFIG).exists():
        return _own(base, path, class_names, given)
    found = Found(str(path), read_folder(path) if path.is_dir() else read_file(path))
    layout = _recognise(found)
    options = [p.name for p in inspect.signature(layout.read).parameters.values() if p.kind is p.KEYWORD_ONLY]
    _refuse_options(layout.described, set(given) - set(options), options)
    adaptation = layout.read(found, base, list(class_names) if class_names is not None else None, **given)
    found.finish()
    return AdaptedBackbone(base, adaptation.to(base.device))


def _own(base: Backbone, folder: Path, class_names: Sequence[str] | None, given: dict[str, Any]) -> AdaptedBackbone:
    _refuse_options("a folder of vlsae", set(given), [])
    adapted = read_adaptation(base, folder)
    if class_names is not None:
        adapted.adaptation.require_classes(class_names)
    return adapted


def _recognise(found: Found) -> Layout:
    layouts = {name: LAYOUTS.get(name)() for name in LAYOUTS}
    matching = [layout for layout in layouts.values() if layout.sniff(found)]
    if len(matching) != 1:
        raise AdaptationError(
            f"{found.source} holds {len(found.tensors)} tensors "
            f"({', '.join(sorted(found.tensors)[:6]) or 'none'}), which are those of "
            f"{' and '.join(layout.described for layout in matching) or 'no known method'}. Known are "
            f"{', '.join(layout.described for layout in layouts.values())}."
        )
    return matching[0]


def _refuse_options(described: str, unknown: set[str], known: list[str]) -> None:
    if unknown:
        raise AdaptationError(
            f"{described} takes no option {', '.join(sorted(unknown))}; it takes {', '.join(known) or 'none'}."
        )
