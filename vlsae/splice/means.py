"""Where a modality lies: the mean embedding of many images or texts, which centring takes away."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlsae.atomic import replacing
from vlsae.splice.inputs import embed
from vlsae.splice.published import MEANS, fetch

if TYPE_CHECKING:
    from vlsae.backbones.base import Backbone

TINY = Path(__file__).parent / "tiny_means.json"
PUBLISHED_FOR = {  # SpLiCE's means and the names under which their models are loaded
    "clip_RN50": ("open_clip:RN50/openai", "open_clip:RN50-quickgelu/openai"),
    "clip_ViT-B-16": ("open_clip:ViT-B-16/openai", "open_clip:ViT-B-16-quickgelu/openai", "hf:openai/clip-vit-base-patch16"),
    "clip_ViT-B-32": ("open_clip:ViT-B-32/openai", "open_clip:ViT-B-32-quickgelu/openai", "hf:openai/clip-vit-base-patch32"),
    "open_clip_ViT-B-32": ("open_clip:ViT-B-32/laion2b_s34b_b79k", "hf:laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
}  # fmt: skip


@dataclass(frozen=True)
class ModalityMean:
    """The mean of unit embeddings of one modality, `mu = mean_i sigma(f(x_i))`, not normalised again.

    Attributes:
        vector: `[e]`, float32.
        modality: "image" or "text".
        n: how many embeddings; 0 where unknown.
        standard_error: expected distance of the vector from the true mean, `sqrt(sum_j var_j / n)`; NaN where unknown.
        data: what was embedded.
        spec, weight_hash: of the model; the hash is "" where unknown.
    """

    vector: np.ndarray
    modality: str
    n: int
    standard_error: float
    data: str
    spec: str
    weight_hash: str = ""

    @classmethod
    def of_embeddings(cls, embeddings, modality: str, *, data: str, spec: str, weight_hash: str = "") -> ModalityMean:
        """The mean of unit embeddings `[N, e]`, N >= 2; others are normalised first.

        Example:
            >>> m = ModalityMean.of_embeddings(np.eye(2), "image", data="axes", spec="none")
            >>> m.vector.tolist(), m.n, round(m.standard_error, 3)
            ([0.5, 0.5], 2, 0.707)
        """
        x = np.asarray(embeddings.detach().cpu() if hasattr(embeddings, "detach") else embeddings, dtype=np.float64)
        if modality not in ("image", "text"):
            raise ValueError(f"modality={modality!r}; give 'image' or 'text'.")
        if x.ndim != 2 or len(x) < 2 or not np.isfinite(x).all():
            raise ValueError(f"The mean needs at least two finite embeddings [N, e]; it was given shape {x.shape}.")
        x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
        error = float(np.sqrt(x.var(0, ddof=1).sum() / len(x)))
        return cls(x.mean(0).astype(np.float32), modality, len(x), error, data, spec, weight_hash)

    @classmethod
    def of(
        cls, model: Backbone, inputs, *, data: str | None = None, batch_size: int = 64, progress: bool = True
    ) -> ModalityMean:
        """The mean of a model's embeddings of images, or of texts.

        Args:
            model: which embeds them.
            inputs: images (`load_images(...)`, scenes, a list of pictures), a list of strings, embeddings of images, or
                an `ActivationStore` of site "vision.pooled". Images that cannot be read are left out with a warning.
            data: what they are, for the record; their source's own name where None.
            batch_size: images a forward pass; progress: show a bar.

        Raises:
            ValueError: for fewer than two.
        """
        found = embed(model, inputs, batch_size=batch_size, progress=progress)
        what = data or getattr(inputs, "spec", "") or f"{len(found)} {found.modality}s"
        return cls.of_embeddings(
            found.embeddings, found.modality, data=what, spec=model.spec, weight_hash=model.weight_hash
        )

    def check(self, model: Backbone, modality: str) -> ModalityMean:
        """This mean, if it was taken with that model; raises a ValueError that says what to do otherwise."""
        if self.modality != modality:
            raise ValueError(
                f"A mean of {self.modality} embeddings was given where one of {modality} embeddings belongs."
            )
        if self.weight_hash:
            same = self.weight_hash == model.weight_hash
        else:
            same = model.spec == self.spec or model.spec in PUBLISHED_FOR.get(self.spec, ())
        if not same:
            raise ValueError(
                f"The {modality} mean of {self.data} was taken with {self.spec} and not with {model.spec}; their spaces "
                "have nothing in common. Take one with `vlsae mean IMAGES --model ...` (ModalityMean.of), or, if the "
                "weights are the same under another name, use replace(mean, spec=model.spec, weight_hash='')."
            )
        return self

    def save(self, path: str | Path) -> Path:
        """Write as JSON; returns the path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            row = {"vlsae_mean": 1, **asdict(replace(self, vector=self.vector.tolist()))}
            if np.isnan(self.standard_error):
                row["standard_error"] = None  # JSON has no NaN
            partial.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
        return path

    @classmethod
    def load(cls, source: str | Path) -> ModalityMean:
        """A mean from a file written by `save`, a `.pt` file of SpLiCE, or one of SpLiCE's by name ("clip_ViT-B-32").

        Raises:
            ValueError: for a file that is neither; OSError: for a missing one.
        """
        if str(source) in MEANS:
            source = fetch(MEANS[str(source)])
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"There is no mean {path}; published ones by name: {', '.join(MEANS)}.")
        if path.suffix == ".pt":
            return _read_published(path)
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            if row.pop("vlsae_mean") != 1:
                raise ValueError("another format number")
            row["standard_error"] = float("nan") if row["standard_error"] is None else row["standard_error"]
            return cls(**{**row, "vector": np.asarray(row["vector"], dtype=np.float32)})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no mean of vlsae ({error}); write one with `vlsae mean`.") from error


def _read_published(path: Path) -> ModalityMean:
    """SpLiCE's file: one float32 tensor, saved from a GPU; the model follows from the file's name."""
    import torch

    try:
        vector = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
        vector = vector.detach().float().flatten().numpy()
    except Exception as error:  # whatever torch raises for a damaged file
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is no tensor file of SpLiCE ({why}).") from error
    if not len(vector) or not np.isfinite(vector).all():
        raise ValueError(f"{path} holds {len(vector)} numbers, some of them not finite; get it again.")
    name = path.stem.removesuffix("_image")
    return ModalityMean(vector, "image", 0, float("nan"), "MSCOCO train, by AI4LIFE-GROUP/SpLiCE", name)


def known_mean(model: Backbone) -> ModalityMean | None:
    """The image mean that comes with a model: the embedded one's own, or SpLiCE's where its name is known."""
    if TINY.exists():
        tiny = ModalityMean.load(TINY)
        if tiny.weight_hash == model.weight_hash:
            return tiny
    name = next((name for name, specs in PUBLISHED_FOR.items() if model.spec in specs), None)
    return ModalityMean.load(name) if name else None
