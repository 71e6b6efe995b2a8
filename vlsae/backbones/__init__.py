"""Models as one protocol: embeddings, tokens, zero-shot, and places where activations are read and edited."""

from vlsae.backbones.base import Backbone
from vlsae.backbones.load import load_model
from vlsae.backbones.precision import PRECISIONS, set_precision
from vlsae.backbones.site import STREAMS, TOWERS, Site

__all__ = ["PRECISIONS", "STREAMS", "TOWERS", "Backbone", "Site", "load_model", "set_precision"]
