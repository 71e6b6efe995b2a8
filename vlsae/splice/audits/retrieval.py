"""Find images by their concepts, with the reason for every hit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vlsae.splice.audits.query import And, Node, Not, QueryError, Term, parse, wanted_terms
from vlsae.splice.audits.table import ROWS_SHOWN, aligned, checked_row, checked_weights, plain, position


@dataclass(frozen=True)
class Match:
    """A concept that speaks for a hit: its weight in the image, and what it counts for in the score."""

    text: str
    weight: float
    share: float


@dataclass(frozen=True)
class Hit:
    """An image that was found."""

    id: Any
    row: int
    score: float
    matched: tuple[Match, ...]


@dataclass(frozen=True)
class Hits:
    """Answer of an index: the best hits, of `n_matched` among `n` images."""

    query: str
    hits: tuple[Hit, ...]
    n_matched: int
    n: int
    definition: str

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    @property
    def rows(self) -> list[int]:
        """Numbers of the images, best first."""
        return [hit.row for hit in self.hits]

    def table(self, n: int = ROWS_SHOWN) -> str:
        """Hits and their reasons as text."""
        rows = [
            (str(h.id), h.score, ", ".join(f"{m.text} {m.weight:.3g}" for m in h.matched[:5])) for h in self.hits[:n]
        ]
        first = f"{self.query}: {self.n_matched} of {self.n} images match\n"
        return first + (aligned(["image", "score", "because of"], rows) if rows else "nothing to show")

    def __str__(self) -> str:
        return self.table()

    def as_dict(self) -> dict[str, Any]:
        """What JSON holds."""
        return plain({"query": self.query, "n": self.n, "n_matched": self.n_matched, "definition": self.definition,
                      "hits": [asdict(h) for h in self.hits]})  # fmt: skip


class ConceptIndex:
    """Inverted index over SpLiCE weights: from a concept to the images that have it.

    Args:
        weights: `[N, K]` sparse, >= 0.
        texts: K concepts.
        ids: names of the images; their numbers where None.

    Raises:
        ValueError: for weights, texts and ids that do not fit.

    Example:
        >>> index = ConceptIndex([[0.4, 0.0], [0.2, 0.3], [0.0, 0.5]], ["dog", "grass"], ["a", "b", "c"])
        >>> [(hit.id, hit.score) for hit in index.query("dog")]
        [('a', 1.0), ('b', 0.5)]
        >>> [hit.id for hit in index.query("dog NOT grass")]
        ['a']
        >>> [hit.id for hit in index.like(1, without=["dog"])]
        ['c']
    """

    def __init__(self, weights: Any, texts: Sequence[str], ids: Sequence[Any] | None = None):
        self._rows = checked_weights(weights, texts)
        self._columns = self._rows.tocsc()
        self.texts = tuple(texts)
        self.ids = list(range(self._rows.shape[0])) if ids is None else list(ids)
        if len(self.ids) != self._rows.shape[0]:
            raise ValueError(f"{len(self.ids)} ids were given for {self._rows.shape[0]} images; expected one an image.")
        self._places = {text: i for i, text in enumerate(self.texts)}
        self._largest = self._columns.max(axis=0).toarray().ravel()
        self._norms = np.sqrt(self._rows.multiply(self._rows).sum(1)).A1

    def __len__(self) -> int:
        return len(self.ids)

    def query(self, query: str, top: int = 10) -> Hits:
        """Images that satisfy a query, best first.

        Fuzzy sets (Zadeh 1965): a concept holds to the degree `w_ij / max_i w_ij`, AND is the minimum, OR the maximum,
        and NOT is 1 where its part has degree 0, else 0. So the images found are those that plain sets would give.

        Args:
            query: concepts with AND, OR, NOT and parentheses; see `vlsae.splice.audits.query.parse`. `dog:0.05` asks
                for a weight of at least .05, `NOT dog:0.05` for less.
            top: hits to return.

        Returns:
            The hits with the concepts that matched; equal scores in the order of the images.

        Raises:
            QueryError: a ValueError with the position of a fault or the nearest spellings of an unknown concept.
        """
        tree = parse(query)
        degree = self._degree(tree, query)
        found = np.flatnonzero(degree > 0)
        best = found[np.argsort(-degree[found], kind="stable")][: max(0, top)]
        terms: dict[str, float] = {}
        for term in wanted_terms(tree):
            terms[term.text] = min(term.least, terms.get(term.text, term.least))
        hits = tuple(Hit(self.ids[i], int(i), float(degree[i]), self._matches(i, terms)) for i in best)
        return Hits(query, hits, len(found), len(self),
                    "score: fuzzy degree; AND minimum, OR maximum of weight / largest weight of the concept")  # fmt: skip

    def _matches(self, row: int, terms: dict[str, float]) -> tuple[Match, ...]:
        found = []
        for text, least in terms.items():
            j = self._places[text]
            weight = float(self._rows[row, j])
            if weight > 0 and weight >= least:
                found.append(Match(text, weight, weight / self._largest[j]))
        return tuple(sorted(found, key=lambda m: -m.share))

    def _degree(self, node: Node, query: str) -> np.ndarray:
        """`[N]` degrees to which the images satisfy a part of the query."""
        if isinstance(node, Term):
            return self._term(node, query)
        if isinstance(node, Not):
            return (self._degree(node.part, query) == 0).astype(np.float64)
        combine = np.minimum if isinstance(node, And) else np.maximum
        return combine.reduce([self._degree(part, query) for part in node.parts])

    def _term(self, term: Term, query: str) -> np.ndarray:
        if term.text not in self._places:
            try:
                position(term.text, self.texts)
            except ValueError as error:
                hint = " Operators are written in capitals." if term.text.upper() in ("AND", "OR", "NOT") else ""
                raise QueryError(query, term.position, f"{error}{hint}") from None
        j = self._places[term.text]
        part = slice(*self._columns.indptr[j : j + 2])
        degree = np.zeros(len(self))
        data = self._columns.data[part]
        if data.size:
            degree[self._columns.indices[part]] = np.where(data >= term.least, data / self._largest[j], 0.0)
        return degree

    def like(self, row: Any, without: Iterable[str] = (), top: int = 10, *, strict: bool = False) -> Hits:
        """Images with the most similar concepts, some of them left aside.

        `cos(q, w_i)` with `q` the image's weights without the named concepts. Images that have these are not favoured
        but, since their norm counts them, pushed back; `strict` leaves them out.

        Args:
            row: number of an image of the index, which is then not among the hits, or weights `[K]` or `[1, K]`.
            without: concepts to remove.
            top: hits to return.
            strict: only images without any of the removed concepts.

        Returns:
            The hits; the shares of the matched concepts add up to the cosine.

        Raises:
            ValueError: for unknown concepts, a row out of range, or when no concept is left.
        """
        without = [without] if isinstance(without, str) else list(without)
        removed = [position(text, self.texts) for text in without]
        code, itself = self._code(row)
        code[removed] = 0.0
        norm = float(np.linalg.norm(code))
        if norm == 0:
            raise ValueError(
                f"Without {', '.join(map(repr, without)) or 'any removed concept'} nothing is left of the image's "
                "weights; expected at least one other concept. Remove fewer."
            )
        cosine = np.minimum((self._rows @ code) / np.maximum(self._norms * norm, 1e-300), 1.0)
        if itself is not None:
            cosine[itself] = 0.0
        if strict and removed:
            cosine[np.unique(self._columns[:, removed].indices)] = 0.0
        found = np.flatnonzero(cosine > 0)
        best = found[np.argsort(-cosine[found], kind="stable")][: max(0, top)]
        hits = tuple(
            Hit(self.ids[i], int(i), float(cosine[i]), self._shared(i, code / (norm * self._norms[i]))) for i in best
        )
        what = f"like {self.ids[itself]!r}" if itself is not None else "like the given weights"
        what += f" without {', '.join(without)}" if without else ""
        return Hits(what, hits, len(found), len(self), "score: cosine of the weights without the removed concepts")

    def _code(self, row: Any) -> tuple[np.ndarray, int | None]:
        if isinstance(row, (int, np.integer)):
            if not 0 <= row < len(self):
                raise ValueError(f"There is no image {row}; expected a number from 0 to {len(self) - 1}.")
            return self._rows[int(row)].toarray().ravel(), int(row)
        return checked_row(row, len(self.texts)).toarray().ravel(), None

    def _shared(self, row: int, scaled: np.ndarray) -> tuple[Match, ...]:
        part = slice(*self._rows.indptr[row : row + 2])
        at, data = self._rows.indices[part], self._rows.data[part]
        found = [Match(self.texts[j], float(v), float(v * scaled[j])) for j, v in zip(at, data) if scaled[j] > 0]
        return tuple(sorted(found, key=lambda m: -m.share))
