"""vlsae: see, compare and edit the concepts inside CLIP and large vision-language models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_PUBLIC = {
    "load_images": "vlsae.images.sources",
    "load_model": "vlsae.backbones.load",
    "load_adapted": "vlsae.adaptation.load",
    "Site": "vlsae.backbones.site",
    "extract": "vlsae.activations.extraction",
    "ActivationStore": "vlsae.activations.reader",
    "load_dictionary": "vlsae.interop.load",
    "train": "vlsae.training.loop",
    "latent_statistics": "vlsae.concepts.statistics",
    "name_latents": "vlsae.concepts.naming",
    "heatmap": "vlsae.heatmaps.maps",
    "SpLiCE": "vlsae.splice.model",
    "Vocabulary": "vlsae.splice.vocabulary",
    "ModalityMean": "vlsae.splice.means",
    "infer": "vlsae.splice.inference",
    "sweep": "vlsae.training.sweeps",
    "compare": "vlsae.adaptation.comparison.comparison",
    "adapt": "vlsae.adaptation.tuning",
    "run_demo": "vlsae.demo",
}
_ROOMS = ("world", "images", "backbones", "activations", "dictionaries", "training", "splice", "concepts", "heatmaps",
          "metrics", "adaptation", "report", "interop")  # fmt: skip

__all__ = [*_PUBLIC, *_ROOMS, "__version__"]

if TYPE_CHECKING:
    from vlsae.activations.extraction import extract
    from vlsae.activations.reader import ActivationStore
    from vlsae.adaptation.comparison.comparison import compare
    from vlsae.adaptation.load import load_adapted
    from vlsae.adaptation.tuning import adapt
    from vlsae.backbones.load import load_model
    from vlsae.backbones.site import Site
    from vlsae.concepts.naming import name_latents
    from vlsae.concepts.statistics import latent_statistics
    from vlsae.demo import run_demo
    from vlsae.heatmaps.maps import heatmap
    from vlsae.images.sources import load_images
    from vlsae.interop.load import load_dictionary
    from vlsae.splice.inference import infer
    from vlsae.splice.means import ModalityMean
    from vlsae.splice.model import SpLiCE
    from vlsae.splice.vocabulary import Vocabulary
    from vlsae.training.loop import train
    from vlsae.training.sweeps import sweep


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"vlsae.{name}")
    raise AttributeError(f"module 'vlsae' has no attribute {name!r}; public names are {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted(__all__)
