"""From what a user gives to a complete recipe: preset, family, options, and who reads which."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

from vlsae.dictionaries.base import DICTIONARIES, Dictionary
from vlsae.dictionaries.baselines import BASELINES
from vlsae.training.config import TrainConfig
from vlsae.training.objectives import OBJECTIVES
from vlsae.training.presets import PRESETS


def _trained(family: str) -> type[Dictionary]:
    """The class of a family; raises ValueError for one that does not exist, or is made and not trained."""
    if family in BASELINES and family not in DICTIONARIES:
        raise ValueError(
            f"{family!r} needs no training: make it from activations x [N, d] by fit_baselines(x, k)[{family!r}] of "
            "vlsae.dictionaries.baselines."
        )
    kind = DICTIONARIES.get(family)
    if not kind.trainable:
        raise ValueError(f"{family!r} needs no training: make it by {kind.made_by}.")
    return kind


def _constructor(family: str) -> set[str]:
    """Names of the keyword arguments of a family's constructor."""
    parameters = inspect.signature(DICTIONARIES.get(family).__init__).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"seed"}


def objective_names(config: TrainConfig) -> list[str]:
    """The loss terms of a recipe; a dead-latent policy that is a loss term comes last."""
    names = config.objectives.split(",") if config.objectives else DICTIONARIES.get(config.family).objectives
    policy = [config.dead_policy] if config.dead_policy in OBJECTIVES else []
    return [name.strip() for name in names] + policy


def constructor_arguments(config: TrainConfig) -> dict[str, Any]:
    """What the constructor of the recipe's family takes from the recipe."""
    wanted = _constructor(config.family)
    return {name: getattr(config, name) for name in wanted if hasattr(config, name)} | {
        name: value for name, value in config.options.items() if name in wanted
    }


def make_config(family: str | None, preset: str | None, options: dict[str, Any]) -> TrainConfig:
    """A preset's fields, then the given ones; what is no field of `TrainConfig` must be known to family or loss.

    Raises:
        ValueError: for an unknown preset, family or option, or a family that is not trained.
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"Unknown preset {preset!r}; known are {', '.join(PRESETS)}.")
    recipe = PRESETS[preset] if preset else {}
    given = {**recipe, **options, **({"family": family} if family else {})}
    known = TrainConfig.__dataclass_fields__
    named = {**recipe.get("options", {}), **given.pop("options", {})}
    special = {**named, **{name: given.pop(name) for name in list(given) if name not in known}}
    config = TrainConfig(**given, options=special)
    kind = _trained(config.family)
    config = replace(config, dead_policy=config.dead_policy or kind.dead_policy)
    readers = _constructor(config.family).union(*(OBJECTIVES.get(name).options for name in objective_names(config)))
    unknown = sorted(set(special) - readers)
    if unknown:
        raise ValueError(
            f"Unknown option {unknown[0]!r} for {config.family!r}; known are {', '.join([*known, *sorted(readers)])}."
        )
    return config


def fit_to_data(config: TrainConfig, d: int) -> TrainConfig:
    """The recipe with what depends on the width of the data filled in."""
    n = config.n_latents or config.expansion * d
    return replace(config, n_latents=n, lr=config.lr or 2e-4 / (n / 2**14) ** 0.5)
