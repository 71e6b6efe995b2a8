"""Similar images, by embeddings or by concepts, with concepts made stronger or weaker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.concepts.strengths import check_latents, with_strengths
from vlsae.dictionaries.base import Dictionary

SPACES = ("embedding", "concepts")


@dataclass(frozen=True)
class Similar:
    """A neighbour that was found.

    Attributes:
        row: its number in the gallery.
        similarity: its cosine with the query.
        shared: latents active in both with their shares of the cosine of codes, largest first.
    """

    row: int
    similarity: float
    shared: tuple[tuple[int, float], ...]


class ConceptGallery:
    """Embeddings to search, with their sparse codes kept (MSAE, arXiv 2502.20578).

    Args:
        dictionary: trained on such embeddings.
        embeddings: `[G, d]`, as the dictionary reads them.

    Raises:
        ValueError: for an empty gallery, or what `encode_sparse` refuses.

    Example:
        >>> from vlsae.dictionaries.relu import ReLUDictionary
        >>> gallery = ConceptGallery(ReLUDictionary(4, 8), torch.randn(10, 4))
        >>> gallery.search(gallery.embeddings[3])[0].row
        3
    """

    def __init__(self, dictionary: Dictionary, embeddings: Tensor):
        if embeddings.ndim != 2 or len(embeddings) == 0:
            raise ValueError(
                f"The gallery has shape {list(embeddings.shape)}; expected [G, {dictionary.d}] with G >= 1."
            )
        self.dictionary, self.embeddings = dictionary, embeddings.to(dictionary.W_dec)
        self.codes = dictionary.encode_sparse(self.embeddings)
        squares = self.codes.values.new_zeros(len(embeddings))
        self._norms = squares.index_add(0, self.codes.rows, self.codes.values.square()).sqrt()
        # where fixed for the data, cosines are taken around the mean: a vector that all share is no similarity
        transform = dictionary.transform
        self._centre = transform.mean if transform.affine and transform.kind != "none" else 0.0

    @torch.no_grad()
    def search(
        self,
        query: Tensor,
        strengths: Mapping[int, float] | None = None,
        *,
        space: str = "embedding",
        top: int = 10,
        explain: int = 5,
    ) -> list[Similar]:
        """The embeddings most similar to a query whose concepts have been given other strengths.

        `cos(x' - mean, g - mean)` of the edited query `x' = x + sum_c (s_c - z_c) d_c` ("embedding", where the mean is
        that of the dictionary's input transform, or 0), or `cos(z', z_g)` of codes ("concepts").

        Args:
            query: `[d]`.
            strengths: the wanted code of some latents; as it is where None.
            space: "embedding" or "concepts".
            top: how many.
            explain: shared concepts listed a result.

        Returns:
            Best first, of equal ones the first in the gallery.

        Raises:
            ValueError: for another shape or space, a latent that does not exist, or `top` below 1.
        """
        d, strengths = self.dictionary.d, dict(strengths or {})
        if query.shape != (d,) or space not in SPACES or top < 1:
            raise ValueError(
                f"query has shape {list(query.shape)}, space={space!r} and top={top}; expected [{d}], one of {SPACES} and at "
                "least 1."
            )
        check_latents(self.dictionary, list(strengths))
        query = query.to(self.dictionary.W_dec)[None]
        z = self.dictionary.encode_sparse(query).dense()[0]
        for latent, strength in strengths.items():
            z[latent] = strength
        dots = self.codes.times(z[:, None])[:, 0]
        lengths = (self._norms * z.norm()).clamp_min(1e-12)
        if space == "concepts":
            similarity = dots / lengths
        else:
            edited = with_strengths(self.dictionary, query, strengths) if strengths else query
            similarity = F.cosine_similarity(edited - self._centre, self.embeddings - self._centre)
        order = similarity.sort(descending=True, stable=True).indices[:top].tolist()
        return [Similar(i, similarity[i].item(), self._shared(i, z, lengths[i], explain)) for i in order]

    def _shared(self, row: int, z: Tensor, length: Tensor, n: int) -> tuple[tuple[int, float], ...]:
        """The `n` latents that count most in the cosine of codes `z` with those of a row of the gallery."""
        mine = self.codes.rows == row
        latents, values = self.codes.latents[mine], self.codes.values[mine]
        parts = z[latents] * values / length
        best = parts.topk(min(n, len(parts)))
        return tuple((int(latents[i]), v.item()) for v, i in zip(best.values, best.indices, strict=True) if v > 0)
