"""Our own folders, which SAELens opens too."""

from __future__ import annotations

from pathlib import Path

from vlsae.dictionaries.base import Dictionary
from vlsae.dictionaries.checkpoint import WEIGHTS, load_dictionary, save_dictionary
from vlsae.interop.answers import Answers
from vlsae.interop.dialect import DIALECTS, Dialect
from vlsae.interop.source import Source


@DIALECTS.register("vlsae")
class Vlsae(Dialect):
    """`cfg.json` with `metadata.vlsae`, and `sae_weights.safetensors`; says everything itself."""

    name = "vlsae"
    project = "vlsae"

    def sniff(self, source: Source) -> bool:
        metadata = source.config.get("metadata")
        return isinstance(metadata, dict) and "vlsae" in metadata and source.weights.name == WEIGHTS

    def read(self, source: Source, answers: Answers) -> Dictionary:
        answers.settle()
        return load_dictionary(source.folder)

    def write(self, dictionary: Dictionary, folder: Path) -> None:
        save_dictionary(dictionary, folder)
