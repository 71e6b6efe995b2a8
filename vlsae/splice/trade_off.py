"""What a penalty buys: sparsity against reconstruction, zero-shot accuracy and retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from vlsae.splice.embedding import unit
from vlsae.splice.inputs import embed
from vlsae.splice.solve import solve

if TYPE_CHECKING:
    from vlsae.splice.model import SpLiCE

L1S = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7)
GALLERY = 1024  # pairs among which the right one has to be found
DEFINITION = (
    "l0: mean number of concepts; cosine: mean cosine of embedding and reconstruction; zero_shot: share of images whose "
    "reconstruction is nearest to the right class; recall_at_1: share whose own caption is the nearest of up to 1,024"
)


@dataclass(frozen=True)
class TradeOffPoint:
    """Scores at one penalty; None for what was not asked. The dense embeddings have `l1` 0 and `l0` their width."""

    l1: float
    l0: float
    cosine: float
    zero_shot: float | None = None
    recall_at_1: float | None = None


@dataclass(frozen=True)
class TradeOff:
    """The curve, from many concepts to few, beside two references.

    Attributes:
        points: one a penalty.
        dense: the embeddings themselves.
        random: the curve of as many random directions in place of the concepts, centred alike.
        n: images.
    """

    points: tuple[TradeOffPoint, ...]
    dense: TradeOffPoint
    random: tuple[TradeOffPoint, ...]
    n: int

    def table(self) -> str:
        """The curve as aligned text."""
        lines = [f"{'l1':>7}  {'concepts':>8}  {'cosine':>6}  {'zero-shot':>9}  {'R@1':>5}   {self.n} images"]
        for name, points in (("", self.points), ("dense", (self.dense,)), ("random", self.random)):
            for p in points:
                zero_shot, recall = (f"{v:.3f}" if v is not None else "-" for v in (p.zero_shot, p.recall_at_1))
                lines.append(
                    f"{p.l1:7.3f}  {p.l0:8.1f}  {p.cosine:6.3f}  {zero_shot:>9}  {recall:>5}   {name}".rstrip()
                )
        return "\n".join(lines)

    __str__ = table

    def as_dict(self) -> dict:
        """For machines."""
        return {
            "points": [asdict(p) for p in self.points], "dense": asdict(self.dense), "n": self.n,
            "random": [asdict(p) for p in self.random], "definition": DEFINITION,
        }  # fmt: skip


def recall_at_1(images: np.ndarray, texts: np.ndarray) -> float:
    """Share of images whose own text is the nearest, within consecutive galleries of up to 1,024 pairs."""
    right = 0
    for start in range(0, len(images), GALLERY):
        scores = images[start : start + GALLERY] @ texts[start : start + GALLERY].T
        right += int((scores.argmax(1) == np.arange(len(scores))).sum())
    return right / len(images)


def trade_off(
    splice: SpLiCE, inputs, *, l1s: Sequence[float] = L1S, labels: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None, captions: Sequence[str] | None = None, seed: int = 0,
) -> TradeOff:  # fmt: skip
    """Decompose the same embeddings with several penalties and score what comes back (SpLiCE, section 5.1).

    Args:
        splice: model, vocabulary, centring and way of reconstruction; its own penalty is not used.
        inputs: images, embeddings or a store, as for `SpLiCE.decompose`.
        l1s: penalties.
        labels: class number of every image, with `class_names`, for zero-shot accuracy ("a photo of a {}").
        captions: the text of every image, for retrieval.
        seed: of the random directions.

    Returns:
        `TradeOff`.

    Raises:
        ValueError: for labels or captions of another number, or labels without class names.

    Example:
        >>> from vlsae.splice import SpLiCE
        >>> from vlsae.world import scenes
        >>> curve = trade_off(SpLiCE("tiny", "tiny", progress=False), scenes(8), l1s=(0.1, 0.4))
        >>> curve.points[0].l0 > curve.points[1].l0, curve.points[0].cosine > curve.points[1].cosine
        (True, True)
    """
    found = embed(splice.model, inputs, progress=splice.progress)
    for name, given in (("labels", labels), ("captions", captions)):
        if given is not None and len(given) != len(found):
            raise ValueError(f"{len(given)} {name} were given for {len(found)} images; give one an image.")
    if (labels is None) != (class_names is None):
        raise ValueError("labels and class_names belong together; give both or none.")
    classes = None if class_names is None else splice.model.classifier(list(class_names)).cpu().numpy()
    texts = None if captions is None else splice.model.encode_text(list(captions)).cpu().numpy()
    mean = splice.mean(found.modality, found.embeddings)
    z = unit(found.embeddings - mean)

    def point(l1: float, l0: float, embeddings: np.ndarray) -> TradeOffPoint:
        cosine = float(np.einsum("ne,ne->n", embeddings, found.embeddings).mean())
        right = None if classes is None else float(((embeddings @ classes.T).argmax(1) == np.asarray(labels)).mean())
        return TradeOffPoint(l1, l0, cosine, right, None if texts is None else recall_at_1(embeddings, texts))

    def curve(atoms: np.ndarray) -> tuple[TradeOffPoint, ...]:
        made = []
        for l1 in l1s:
            codes = solve(z, atoms, l1, threads=splice.threads)
            combined = np.asarray(codes.weights @ atoms)
            back = unit((unit(combined) if splice.inner_normalise else combined) + mean)
            made.append(point(l1, float(codes.l0.mean()), back))
        return tuple(made)

    directions = np.random.default_rng(seed).standard_normal(splice.space.atoms.shape).astype(np.float32)
    dense = point(0.0, float(z.shape[1]), found.embeddings)
    return TradeOff(curve(splice.space.atoms), dense, curve(unit(directions)), len(found))
