"""The change of the model's output, and of what lies between."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsae.training.config import TrainConfig
from vlsae.training.objectives.base import OBJECTIVES, Objective, Start, Step


def output_kl(logits: Tensor, changed: Tensor) -> Tensor:
    """`KL(y || yhat)` of the softmax distributions of two sets of logits `[B, C]`, mean over the batch, in nats.

    Example:
        >>> output_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]])).item()
        0.0
    """
    y, yhat = logits.log_softmax(-1), changed.log_softmax(-1)
    return (y.exp() * (y - yhat)).sum(-1).mean()


def downstream_error(later: dict[str, Tensor], changed: dict[str, Tensor]) -> Tensor:
    """`mean_k mean_tokens ||ahat_k - a_k||^2` over the sites `k`, each `[..., d]`."""
    return torch.stack([(later[site] - changed[site]).square().sum(-1).mean() for site in later]).mean()


@OBJECTIVES.register("end_to_end")
class EndToEnd(Objective):
    """`kl KL(y || yhat) + downstream mean_k ||ahat_k - a_k||^2` with the reconstruction spliced into a frozen model.

    Braun et al. 2024 (arXiv 2405.12241), e2e with `downstream=0` and e2e+ds otherwise; their `beta_l` is
    `downstream`. The direction `KL(y || yhat)` is that of their released code. Add "l1" (or a TopK family) for
    sparsity.

    Args:
        data: a `FrozenModel`, such as `vlsae.training.SplicedModel`.
        kl: weight of the output's divergence.
        downstream: weight of the mean squared change of the later layers.

    Raises:
        ValueError: for data that are not a model's, negative weights, or no later layer to measure.
    """

    name = "end_to_end"
    options = ("kl", "downstream")

    def __init__(self, data, kl: float = 1.0, downstream: float = 0.0):
        if not hasattr(data, "spliced"):
            raise ValueError(
                f"The objective 'end_to_end' needs a model, but the data are {type(data).__name__}; train on "
                "vlsae.training.SplicedModel(model, images, class_names, site)."
            )
        if kl < 0 or downstream < 0 or kl + downstream == 0:
            raise ValueError(f"kl={kl} and downstream={downstream} are weights: not negative, and not both 0.")
        if downstream and not data.later:
            raise ValueError("No later layer lies behind this site; use downstream=0, or an earlier site.")
        self.data, self.kl, self.downstream = data, kl, downstream

    @classmethod
    def make(cls, config: TrainConfig, start: Start) -> EndToEnd:
        return cls(start.data, config.option("kl", 1.0), config.option("downstream", 0.0))

    def __call__(self, step: Step) -> Tensor:
        xhat = step.dictionary.transform.inverse(step.xhat, self.data.x.to(step.xhat))
        logits, later = self.data.spliced(xhat)
        loss = self.kl * output_kl(self.data.logits, logits)
        return loss + self.downstream * downstream_error(self.data.later, later) if self.downstream else loss
