"""An image's code must also tell its text, and a text's code its image."""

from __future__ import annotations

from torch import Tensor

from vlsae.training.config import TrainConfig
from vlsae.training.objectives.base import OBJECTIVES, Objective, Start, Step
from vlsae.training.objectives.reconstruction import Reconstruction


def require_pairs(step: Step, name: str) -> None:
    """Raise ValueError unless the step holds images and their texts, and a dictionary that tells them apart."""
    if "modality" not in step.extras:
        raise ValueError(
            f"The objective {name!r} needs pairs, and {step.dictionary.family!r} was given none; train 'vl_sae' on "
            "TwoModalities(images, texts)."
        )


@OBJECTIVES.register("cross_reconstruction")
class CrossReconstruction(Objective):
    """`cross (E ||x_t - D_t(z_v)||^2 + E ||x_v - D_v(z_t)||^2) / 2`, at the scale of the reconstruction.

    It is what uses the pairing, which VL-SAE's published loss does not: a latent is of use to both decoders only where
    it fires on both sides of a pair.
    """

    name = "cross_reconstruction"
    options = ("cross",)

    def __init__(self, coefficient: float, reconstruction: Reconstruction):
        self.coefficient, self.reconstruction = coefficient, reconstruction

    @classmethod
    def make(cls, config: TrainConfig, start: Start) -> CrossReconstruction:
        return cls(config.option("cross", 1.0), Reconstruction.make(config, start))

    def __call__(self, step: Step) -> Tensor:
        require_pairs(step, self.name)
        (images, texts), (of_images, of_texts) = step.x.chunk(2), step.z.chunk(2)
        as_text, as_image = step.dictionary.decoded(of_images, "text"), step.dictionary.decoded(of_texts, "image")
        error = self.reconstruction.error
        return self.coefficient * (error(texts, as_text) + error(images, as_image)) / 2
