"""Matryoshka over prefixes of the dictionary (Bussmann et al. 2025). Not over sparsities; see nested_sparsity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vlsae.dictionaries.base import DICTIONARIES
from vlsae.dictionaries.batch_topk import BatchTopKDictionary


def paper_prefixes(n_latents: int) -> list[int]:
    """Five widths in the proportions of the paper's 65,536: 1/32, 3/32, 7/32, 15/32 and all.

    Example:
        >>> paper_prefixes(65536)
        [2048, 6144, 14336, 30720, 65536]
    """
    return sorted({max(1, round(n_latents * share / 32)) for share in (1, 3, 7, 15, 32)})


@DICTIONARIES.register("nested_dictionary")
class NestedDictionaryMatryoshka(BatchTopKDictionary):
    """A BatchTopK dictionary whose first `m_i` latents reconstruct on their own, for every prefix `m_1 < ... < n`.

    Early latents become general, later ones specific. Arxiv 2503.17547, section 3; not MSAE, whose levels are numbers
    of active latents.

    Args:
        d: width of the activations.
        n_latents: number of atoms.
        k: mean number of active latents a token, over the whole dictionary.
        prefixes: widths, rising, the last `n_latents`; the paper's proportions where empty.
        seed: of the initial weights.

    Raises:
        ValueError: for prefixes that do not rise or do not end with `n_latents`.

    Example:
        >>> sae = NestedDictionaryMatryoshka(d=4, n_latents=8, k=2, prefixes=[2, 8])
        >>> sae.sub_dictionary(0).atoms.shape
        torch.Size([2, 4])
    """

    family = "nested_dictionary"
    objectives = ("nested_dictionary",)

    def __init__(self, d: int, n_latents: int, *, k: int, prefixes: Sequence[int] = (), seed: int = 0):
        super().__init__(d, n_latents, k=k, seed=seed)
        self.prefixes = [int(m) for m in prefixes] or paper_prefixes(n_latents)
        if sorted(set(self.prefixes)) != self.prefixes or self.prefixes[0] < 1 or self.prefixes[-1] != n_latents:
            raise ValueError(f"prefixes={self.prefixes} must rise from at least 1 to n_latents={n_latents}.")

    @property
    def settings(self) -> dict[str, Any]:
        return {"k": self.k, "prefixes": self.prefixes}

    @torch.no_grad()
    def sub_dictionary(self, level: int) -> NestedDictionaryMatryoshka:
        """The dictionary of the first `prefixes[level]` latents alone, with the same threshold.

        Raises:
            ValueError: for a level that does not exist.
        """
        if not 0 <= level < len(self.prefixes):
            raise ValueError(f"level={level} does not exist; there are {len(self.prefixes)}, counted from 0.")
        m = self.prefixes[level]
        part = type(self)(self.d, m, k=min(self.k, m), prefixes=self.prefixes[: level + 1])
        part.transform, part.metadata = self.transform, dict(self.metadata)
        part.W_enc.copy_(self.W_enc[:, :m])
        part.b_enc.copy_(self.b_enc[:m])
        part.W_dec.copy_(self.W_dec[:m])
        part.b_dec.copy_(self.b_dec)
        part.threshold.copy_(self.threshold[:m])
        return part
