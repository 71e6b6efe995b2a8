"""Universal dictionaries: several models, or modalities, that share their latents (arXiv 2502.03714)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from vlsae.atomic import replacing
from vlsae.dictionaries.base import Codes, Dictionary
from vlsae.dictionaries.checkpoint import CheckpointError, load_dictionary

NAMES = "universal.json"


class UniversalDictionary(Mapping):
    """A dictionary a model; latent `k` of all of them is meant to be one concept.

    `z = Enc_i(x_i)`, `xhat_j = z D_j` for any models i and j (arXiv 2502.03714). Each part is an ordinary
    `Dictionary`, so that every metric, heatmap and report takes `universal["clip"]`.

    Args:
        parts: dictionaries by the name of their model; any widths, one number of latents.

    Raises:
        ValueError: for no parts, or other numbers of latents.

    Example:
        >>> import torch
        >>> from vlsae.dictionaries.topk import TopKDictionary
        >>> pair = UniversalDictionary({"a": TopKDictionary(4, 8, k=2), "b": TopKDictionary(6, 8, k=2)})
        >>> pair.translate(torch.randn(5, 4), "a", "b").shape
        torch.Size([5, 6])
    """

    def __init__(self, parts: Mapping[str, Dictionary]):
        widths = {name: part.n_latents for name, part in parts.items()}
        if len(set(widths.values())) != 1:
            raise ValueError(f"Parts have {widths or 'no'} latents; give one dictionary or more, of one n_latents.")
        self.parts = dict(parts)
        self.n_latents = next(iter(widths.values()))

    def __getitem__(self, name: str) -> Dictionary:
        if name not in self.parts:
            raise KeyError(f"There is no model {name!r}; known are {', '.join(self.parts)}.")
        return self.parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def encode(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Codes of every model's activations: `{name: [..., d_name]}` to `{name: [..., n_latents]}`."""
        return {name: self[name].encode(values) for name, values in x.items()}

    def encode_sparse(self, x: Mapping[str, Tensor]) -> dict[str, Codes]:
        """The same as sparse codes."""
        return {name: self[name].encode_sparse(values) for name, values in x.items()}

    def translate(self, x: Tensor, source: str, target: str, like: Tensor | None = None) -> Tensor:
        """What the activations of one model say about those of another, `Enc_source(x) D_target`.

        Args:
            x: `[..., d_source]`.
            source, target: names of models.
            like: `[..., d_target]`, only needed behind a transform of each token.

        Returns:
            `[..., d_target]`, in the units of the target's activations.

        Raises:
            KeyError: for a model that is not there.
        """
        return self[target].decode(self[source].encode(x), like)

    def save(self, folder: str | Path) -> Path:
        """Write `universal.json` and a folder a model; returns the folder."""
        folder = Path(folder)
        for number, part in enumerate(self.parts.values()):
            part.save(folder / str(number))  # by number: a model's name may hold slashes
        with replacing(folder / NAMES) as partial:
            partial.write_text(json.dumps(list(self.parts), indent=2) + "\n", encoding="utf-8")
        return folder


def load_universal(folder: str | Path, device: str = "cpu") -> UniversalDictionary:
    """Read what `UniversalDictionary.save` wrote.

    Args:
        folder: with `universal.json`.
        device: where the weights go.

    Raises:
        CheckpointError: for a missing or damaged folder.
    """
    path = Path(folder) / NAMES
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; give a folder of UniversalDictionary.save.") from error
    return UniversalDictionary(
        {name: load_dictionary(path.parent / str(number), device) for number, name in enumerate(names)}
    )
