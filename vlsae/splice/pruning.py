"""Leave out concepts that say what a more frequent one says already."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Embed = Callable[[Sequence[str]], np.ndarray]


class Pruner:
    """Picks concepts from the most frequent to the least, in the space of a text encoder.

    A concept is dropped when its cosine to a kept, more frequent one is above `similarity`; a two-word phrase also
    when its cosine to the normalised mean of the embeddings of its words is. This is exact: all cosines to the kept
    ones come from one matrix product a block, and inside the block one concept is taken after the other.

    Args:
        embed: texts to unit rows `[N, d]`; None keeps every concept that a quota has room for.
        quotas: concepts wanted of one word, and of two.
        similarity: cosine in -1 ... 1 above which two concepts are one.

    Attributes:
        similar, explained: how many were dropped as similar to a kept one, or as explained by their words.

    Raises:
        ValueError: for a similarity outside of -1 ... 1.

    Example:
        >>> rows = {"dog": [1, 0], "hound": [0.98, 0.199], "owl": [0, 1]}
        >>> pruner = Pruner(lambda texts: np.float32([rows[t] for t in texts]), (9, 9), similarity=0.9)
        >>> pruner.offer(["dog", "hound", "owl"])
        [True, False, True]
    """

    def __init__(self, embed: Embed | None, quotas: tuple[int, int], similarity: float = 0.9):
        if not -1 <= similarity <= 1:
            raise ValueError(f"The similarity is {similarity}; it is a cosine from -1 to 1, in SpLiCE 0.9.")
        self.embed = embed
        self.left = list(quotas)
        self.similarity = similarity
        self.similar = self.explained = 0
        self._known: dict[str, np.ndarray] = {}
        self._kept: np.ndarray | None = None
        self._n = 0

    def is_open(self, text: str) -> bool:
        """Whether the quota of this text's kind has room."""
        return self.left[" " in text] > 0

    def offer(self, texts: list[str]) -> list[bool]:
        """Judge the next candidates, less frequent than all before. Returns which of them were kept."""
        if self.embed is None:
            return [self._take(text) for text in texts]
        rows = self._rows(texts)
        by_words = self._by_words(texts, rows)
        near = np.zeros(len(texts), bool)
        if self._n:
            near = (rows @ self._kept[: self._n].T).max(1) > self.similarity
        among = rows @ rows.T > self.similarity
        kept = []
        for i, text in enumerate(texts):
            taken = False
            if self.is_open(text):
                self.explained += int(by_words[i])
                self.similar += int(near[i] and not by_words[i])
                taken = not by_words[i] and not near[i] and self._take(text)
            if taken:
                near |= among[i]
            kept.append(taken)
        self._keep(rows[kept])
        return kept

    def _take(self, text: str) -> bool:
        room = self.is_open(text)
        self.left[" " in text] -= room
        return room

    def _rows(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings; single words are remembered, since pairs of them follow."""
        new = list(dict.fromkeys(t for t in texts if t not in self._known))
        found = {}
        if new:
            rows = np.asarray(self.embed(new), np.float32)
            if not np.isfinite(rows).all():
                raise ValueError("The text encoder gave embeddings that are not finite; check the model's weights.")
            found = dict(zip(new, rows))
            self._known |= {text: row for text, row in found.items() if " " not in text}
        return np.stack([found[t] if t in found else self._known[t] for t in texts])

    def _by_words(self, texts: list[str], rows: np.ndarray) -> np.ndarray:
        """Which phrases are explained by their words."""
        explained = np.zeros(len(texts), bool)
        pairs = [i for i, text in enumerate(texts) if " " in text]
        if pairs:
            words = self._rows([word for i in pairs for word in texts[i].split()])
            mean = words[0::2] + words[1::2]
            length = np.linalg.norm(mean, axis=1)
            # Words that cancel out have no mean direction, so they explain nothing.
            explained[pairs] = ((rows[pairs] * mean).sum(1) > self.similarity * length) & (length > 1e-6)
        return explained

    def _keep(self, rows: np.ndarray) -> None:
        """Append to the matrix of kept embeddings, which doubles when it is full."""
        end = self._n + len(rows)
        if self._kept is None or end > len(self._kept):
            larger = np.empty((max(2 * end, 1024), rows.shape[1]), np.float32)
            if self._n:
                larger[: self._n] = self._kept[: self._n]
            self._kept = larger
        self._kept[self._n : end] = rows
        self._n = end
