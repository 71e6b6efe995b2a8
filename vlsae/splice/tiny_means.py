"""Takes the means that come with the embedded model: `python -m vlsae.splice.tiny_means`."""

from __future__ import annotations

from vlsae.backbones.load import load_model
from vlsae.splice.means import TINY, ModalityMean
from vlsae.world import scenes

N, SEED = 8000, 4000


def take(n: int = N, seed: int = SEED, progress: bool = True) -> ModalityMean:
    """The mean image embedding of `n` scenes with one to four objects, in the styles the model has seen."""
    drawn = scenes(n, seed=seed, styles="seen")
    what = f"vlsae.world.scenes({n}, seed={seed}, styles='seen')"
    return ModalityMean.of(load_model("tiny"), drawn, data=what, progress=progress)


if __name__ == "__main__":
    take().save(TINY)
