"""SpLiCE: embeddings as sparse non-negative combinations of words (arXiv 2402.10376)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse

from vlsae.splice.decomposition import Decomposition
from vlsae.splice.editing import Edited, edit_weights
from vlsae.splice.embedding import embed_vocabulary, unit
from vlsae.splice.inputs import are_texts, embed
from vlsae.splice.means import ModalityMean, known_mean
from vlsae.splice.solve import penalty, solve
from vlsae.splice.vocabulary import Vocabulary
from vlsae.splice.weights import ConceptWeights

if TYPE_CHECKING:
    from vlsae.backbones.base import Backbone
    from vlsae.splice.audits import ConceptSummary

L1 = 0.25
MODES = ("error_preserving", "recompose")


class SpLiCE:
    """Decompose the embeddings of a model into concepts of a vocabulary, and put them together again.

    With `sigma(v) = v / ||v||`: `z = sigma(sigma(f(x)) - mu)`, `w = argmin_{w >= 0} ||z - wC||^2 + l1 ||w||_1`, and back
    `xhat = sigma(wC + mu)` (SpLiCE, equations 2 to 4; its released code puts `sigma(wC)` for `wC`, see
    `inner_normalise`).

    Args:
        model: a `Backbone` with a text tower, or its name.
        vocabulary: a `Vocabulary`, or what `Vocabulary.load` takes.
        l1: penalty of the objective, SpLiCE's `l1_penalty`; 0.25 where no other is given. Larger: fewer concepts.
        lam: the paper's lambda, `l1 / 2`.
        n_concepts: a number of concepts in place of a penalty.
        image_mean: `mu` of images; None: the one that comes with the model; "batch": the mean of whatever is
            decomposed, for at least 64 images; False: images are not centred.
        text_mean: `mu` of texts; None: the mean of the vocabulary's embeddings; False: texts are not centred.
        method: of `solve`; with `n_concepts` "omp" or "path".
        inner_normalise: reconstruct by `sigma(sigma(wC) + mu)`, as SpLiCE's released code does.
        size: keep the most frequent concepts of the vocabulary only.
        threads: processor threads of the solver; None for torch's number.
        cache: keep the vocabulary's embeddings on disk.
        progress: show progress bars.

    Raises:
        ValueError: for a mean of another model, no image mean, or a model without a text tower.

    Example:
        >>> from vlsae.world import scenes
        >>> sp = SpLiCE("tiny", "tiny", progress=False)
        >>> found = sp.decompose(scenes(2, seed=3))
        >>> len(found), float(found.codes.gap.max()) < 1e-6
        (2, True)
    """

    def __init__(
        self, model: Backbone | str, vocabulary="concepts-en", *, l1: float | None = None, lam: float | None = None,
        n_concepts: int | None = None, image_mean: ModalityMean | str | Path | bool | None = None,
        text_mean: ModalityMean | str | Path | bool | None = None, method: str = "active_set",
        inner_normalise: bool = False, size: int | None = None, threads: int | None = None, cache: bool = True,
        progress: bool = True,
    ):  # fmt: skip
        from vlsae.backbones.load import load_model

        if n_concepts is None and l1 is None and lam is None:
            l1 = L1
        self.l1 = None if n_concepts is not None and l1 is None and lam is None else float(penalty(l1, lam))
        if n_concepts is not None and self.l1 is not None:
            raise ValueError(f"n_concepts={n_concepts} and a penalty were given; give one of them.")
        for name, mean in (("image_mean", image_mean), ("text_mean", text_mean)):
            if mean is True:
                raise ValueError(f"{name}=True; give None for the usual mean, a mean, 'batch', or False for none.")
        self.model = load_model(model)
        self.space = embed_vocabulary(self.model, Vocabulary.load(vocabulary, size), cache=cache, progress=progress)
        self.n_concepts, self.method, self.threads = n_concepts, method, threads
        self.inner_normalise, self.progress = inner_normalise, progress
        self._image_mean, self._text_mean = image_mean, text_mean
        for modality, given in (("image", image_mean), ("text", text_mean)):
            if given is not None and not isinstance(given, bool) and str(given) != "batch":
                self.mean(modality, np.zeros((0, 0)))  # a mean of another model is an error now, not later
        self._solve(np.zeros((0, self.space.embeddings.shape[1]), np.float32))  # and so is an unknown method

    # ---- embeddings and centring -----------------------------------------------------------------------------------

    def mean(self, modality: str, embeddings: np.ndarray) -> np.ndarray:
        """`mu` of a modality, `[e]`; `embeddings` are what "batch" is taken of."""
        given = self._image_mean if modality == "image" else self._text_mean
        e = self.space.embeddings.shape[1]
        if given is False:
            return np.zeros(e, np.float32)
        if given is None and modality == "text":
            return self.space.mean
        if isinstance(given, str) and given == "batch":
            if len(embeddings) < 64:
                raise ValueError(f"The mean of {len(embeddings)} embeddings is no mean of a modality; give 64 or more.")
            return embeddings.mean(0, dtype=np.float64).astype(np.float32)
        if given is None:
            found = known_mean(self.model)
            if found is None:
                raise ValueError(
                    f"No image mean is known for {self.model.spec}. Take one from some thousand ordinary pictures with `vlsae "
                    "mean FOLDER --model ... --out mean.json` (ModalityMean.of) and give it as image_mean; or give 'batch' "
                    "(the mean of what is decomposed) or False (no centring: images and texts then lie far apart)."
                )
        else:
            found = given if isinstance(given, ModalityMean) else ModalityMean.load(given)
        vector = found.check(self.model, modality).vector
        if vector.shape != (e,):
            raise ValueError(
                f"The {modality} mean has {len(vector)} numbers; embeddings of {self.model.spec} have {e}."
            )
        if modality == "image":
            self._image_mean = found
        else:
            self._text_mean = found
        return vector

    # ---- there and back --------------------------------------------------------------------------------------------

    def decompose(self, inputs, *, modality: str | None = None) -> Decomposition:
        """Sparse non-negative concept weights of images, texts or embeddings.

        Args:
            inputs: images (a list, `load_images(...)`, scenes), a list of strings, embeddings `[N, e]` (array or
                tensor, any norm), or an `ActivationStore` of site "vision.pooled".
            modality: "image" or "text", for embeddings of texts; found where None.

        Returns:
            `Decomposition`.
        """
        if self._image_mean != "batch" and (modality or ("text" if are_texts(inputs) else "image")) == "image":
            self.mean("image", np.zeros((0, 0)))  # a missing mean is an error before hours of embedding, not after
        found = embed(self.model, inputs, progress=self.progress)
        embeddings, modality = found.embeddings, modality or found.modality
        if embeddings.shape[1] != self.space.embeddings.shape[1]:
            e = self.space.embeddings.shape[1]
            raise ValueError(f"Embeddings have shape {embeddings.shape}; those of {self.model.spec} have [N, {e}].")
        if modality not in ("image", "text"):
            raise ValueError(f"modality={modality!r}; give 'image' or 'text'.")
        mean = self.mean(modality, embeddings)
        codes = self._solve(unit(embeddings - mean))
        return Decomposition(
            codes, embeddings, self._put_together(codes.weights, mean), self.space, modality, found.names, found.labels
        )

    def _solve(self, z: np.ndarray) -> ConceptWeights:
        return solve(
            z, self.space.prepared, self.l1, n_concepts=self.n_concepts, method=self.method, threads=self.threads
        )

    def _check(self, found: Decomposition) -> Decomposition:
        if found.space.key != self.space.key:
            raise ValueError(
                "The decomposition was made with another model or vocabulary; its weights mean other concepts here."
            )
        return found

    def _put_together(self, weights: scipy.sparse.spmatrix, mean: np.ndarray) -> np.ndarray:
        combined = np.asarray(weights @ self.space.atoms)
        return unit((unit(combined) if self.inner_normalise else combined) + mean)

    def reconstruct(self, weights, *, modality: str = "image") -> np.ndarray:
        """Unit embeddings `sigma(wC + mu)` of weights.

        Args:
            weights: a `Decomposition`, or `[N, K]` sparse or dense, non-negative.
            modality: whose mean is added; a decomposition knows its own.

        Returns:
            float32 `[N, e]`; a row without weights gives the mean's direction.
        """
        embeddings = np.zeros((0, 0))
        if isinstance(weights, Decomposition):
            found = self._check(weights)
            modality, weights, embeddings = found.modality, found.weights, found.embeddings
        weights = scipy.sparse.csr_matrix(weights)
        if weights.shape[1] != len(self.space.vocabulary):
            raise ValueError(
                f"Weights have shape {weights.shape}; the vocabulary has {len(self.space.vocabulary)} concepts."
            )
        return self._put_together(weights, self.mean(modality, embeddings))

    def intervene(
        self, inputs, *, remove: Sequence[str] = (), clamp: Mapping[str, float] | None = None,
        add: Mapping[str, float] | None = None, mode: str = "error_preserving",
    ) -> Edited:  # fmt: skip
        """Embeddings with concepts removed, set to a value, or added.

        Args:
            inputs: a `Decomposition`, or what `decompose` takes.
            remove: concepts whose weight becomes 0.
            clamp: concepts whose weight becomes a value, also where they were absent.
            add: concepts whose weight changes by a value; weights stay at 0 or above.
            mode: "error_preserving": with `s = ||sigma(f(x)) - mu||` the edit `s (w' - w) C` is added to the embedding,
                so that what the concepts do not explain stays, and no edit leaves it bit for bit as it was;
                "recompose": `sigma(w'C + mu)`, SpLiCE's own intervention, keeps the concepts alone.

        Returns:
            `Edited`, with the new unit embeddings, the new weights, and how far each embedding moved.

        Raises:
            ValueError: for an unknown concept or mode, or a negative clamp.
        """
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}; use one of {', '.join(MODES)}.")
        found = self._check(inputs) if isinstance(inputs, Decomposition) else self.decompose(inputs)
        changed = edit_weights(found.weights, self.space.vocabulary, remove, clamp or {}, add or {})
        mean = self.mean(found.modality, found.embeddings)
        if mode == "recompose":
            embeddings = self._put_together(changed, mean)
        else:
            shift = np.asarray((changed - found.weights) @ self.space.atoms)
            scale = np.linalg.norm(found.embeddings - mean, axis=1, keepdims=True)
            moved = np.abs(shift).max(1, keepdims=True) > 0
            embeddings = np.where(moved, unit(found.embeddings + scale * shift), found.embeddings)
        return Edited(embeddings.astype(np.float32), changed, np.einsum("ne,ne->n", embeddings, found.embeddings), mode)

    # ---- many images -----------------------------------------------------------------------------------------------

    def decompose_dataset(self, images, *, n_boot: int = 500, seed: int = 0) -> tuple[Decomposition, ConceptSummary]:
        """Decompose a data set and say what it is about: mean weight and prevalence of every concept, with intervals.

        Args:
            images: as for `decompose`. For a set whose embedding takes long, `extract` the site "vision.pooled" first
                (it resumes after an interruption) and give the store.
            n_boot: bootstrap samples of the intervals; seed: of these.
        """
        from vlsae.splice.audits import summarise

        found = self.decompose(images)
        return found, summarise(found.weights, found.texts, n_boot=n_boot, seed=seed)

    def decompose_classes(self, images, labels: Sequence[int] | None = None, **options) -> dict[int, ConceptSummary]:
        """The summary of every class, by its number.

        Args:
            images: as for `decompose`, or a `Decomposition`.
            labels: class number of every image; the images' own where None; negative ones are left out.
            **options: of `summarise`.
        """
        from vlsae.splice.audits import summarise

        found = images if isinstance(images, Decomposition) else self.decompose(images)
        given = found.labels if labels is None else np.asarray(labels)
        classes = [int(c) for c in np.unique(given) if c >= 0] if np.issubdtype(given.dtype, np.integer) else []
        if len(given) != len(found) or not classes:
            raise ValueError(
                f"{len(given)} labels with {len(classes)} classes were given for {len(found)} images; give one class "
                "number (0, 1, ...) an image."
            )
        return {c: summarise(found.weights[given == c], found.texts, **options) for c in classes}
