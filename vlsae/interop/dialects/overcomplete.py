"""Dictionaries of the library `overcomplete` (Fel et al.): state dicts, training checkpoints and whole pickled models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlsae.dictionaries.base import Dictionary
from vlsae.interop import overcomplete_layers as layers
from vlsae.interop.answers import Answers, Fact, model, site
from vlsae.interop.dialect import DIALECTS, Dialect, DialectError
from vlsae.interop.dialects.usae import is_universal
from vlsae.interop.modules import SavedModule, names
from vlsae.interop.overcomplete_export import LIBRARY, write
from vlsae.interop.source import Source
from vlsae.interop.weights import build

FAMILIES = {"SAE": "relu", "TopKSAE": "topk", "BatchTopKSAE": "batch_topk", "JumpSAE": "jumprelu", "RATopKSAE": "topk",
            "RAJumpSAE": "jumprelu", "MpSAE": "matching_pursuit", "OMPSAE": "omp", "QSAE": "quantised"}  # fmt: skip
WITH_ENCODER = {"relu": "SAE", "topk": "TopKSAE, RATopKSAE", "batch_topk": "BatchTopKSAE, and then threshold=... too"}
WITHOUT = {"matching_pursuit": "MpSAE", "omp": "OMPSAE"}
ATTRIBUTES = ("top_k", "k", "threshold_momentum", "dropout", "max_iter", "bandwidth", "bandwith", "kernel_fn")
PROGRESS = ("epoch", "step", "loss", "lr", "learning_rate")
LAYER, TIED = "dictionary", "encoder.tied_to"
PLAIN = ("_weights", "dictionary")  # the weights of a plain dictionary layer, and before release 0.1
DRIFT = 0.05  # how far an optimiser's step takes unit norms from 1, generously


@DIALECTS.register("overcomplete")
class Overcomplete(Dialect):
    """What `torch.save` made of a model or of its state dict, alone or in the dictionary of a training script."""

    name = "overcomplete"
    project = "overcomplete"
    classes = (r"overcomplete\.sae\.\w+\.\w+", r"torch\.nn\.modules\.\w+\.\w+")

    def sniff(self, source: Source) -> bool:
        return bool(_prefixes(source)) and not is_universal(source)

    def read(self, source: Source, answers: Answers) -> Dictionary:
        return _Reading(_module(source), answers).dictionary()

    def write(self, dictionary: Dictionary, folder: Path) -> None:
        write(dictionary, folder)


def _prefixes(source: Source) -> list[str]:
    """Where in the file a model of this library begins, for each that it holds."""
    held = [name for name, own in names(source).items() if own in source.shapes]
    ends = {"dictionary._weights": (), "dictionary.W": ("dictionary.C", "dictionary.Relax"),
            "dictionary.dictionary": ("encoder.0.weight", "encoder.1.running_mean")}  # fmt: skip
    found = []
    for end, others in ends.items():
        for name in held:
            prefix = name.removesuffix(end)
            if prefix != name and prefix[-1:] in ("", ".") and all(prefix + other in held for other in others):
                found.append(prefix)
    return found


def _module(source: Source) -> SavedModule:
    found = _prefixes(source)
    if len(found) != 1:
        raise DialectError(
            f"{source.weights} holds {len(found)} models of overcomplete ({', '.join(repr(name) for name in found[:5])}); "
            "expected one with dictionary._weights, or dictionary.W, C and Relax. Save one model's state dict in a file."
        )
    return SavedModule(source, found[0])


class _Reading:
    """One file being read: what it says, what is asked, what comes out."""

    def __init__(self, module: SavedModule, answers: Answers):
        self.module, self.answers, self.where = module, answers, module.source.weights
        self.notes: list[str] = []
        config = module.source.config
        self.config = config if config.get("library") == LIBRARY else {}
        self.arguments = found if isinstance(found := self.config.get("arguments"), dict) else {}
        self.pickled = module.kind() is not None
        self.their_class = module.kind() or self.config.get("class")
        self.archetypes = [layer for layer in (LAYER, TIED) if layers.is_archetypal(module, layer)]
        self.plain = {
            layer: layers.raw_weights(module, layer)
            for layer in (LAYER, TIED)
            if layer not in self.archetypes and any(module.has(f"{layer}.{end}") for end in PLAIN)
        }
        shape = module.shapes["dictionary.Relax"] if LAYER in self.archetypes else self.plain[LAYER].shape
        if len(shape) != 2:
            raise DialectError(f"{self.where}: dictionary.Relax has shape {list(shape)}; expected [n_latents, d].")
        self.n, self.d = shape

    def dictionary(self) -> Dictionary:
        family, facts = self._facts()
        self.told = self.answers.settle(**facts)
        self._check(family)
        self._note_drift()
        found = self._pursuit(family) if family in WITHOUT else self._linear(family)
        said = {name: self._said(name) for name in ATTRIBUTES}
        content = self.module.source.content
        progress = {name: content.get(name) for name in PROGRESS} if isinstance(content, dict) else {}
        found.metadata = {
            "model": self.told.model,
            "site": self.told.site,
            "class": self.their_class,
            **{name: value for name, value in (said | progress).items() if isinstance(value, str) or _is_number(value)},
            **{name: getattr(self.told, name) for name in ("normalization", "delta") if name in facts},
            "notes": self.notes,
        }
        return found

    def _said(self, name: str) -> Any:
        """An attribute of a pickled model, or an argument of a class that we wrote down."""
        return self.module.value(name) if self.pickled else self.arguments.get(name)

    def _facts(self) -> tuple[str, dict[str, Fact]]:
        """The family, and all that has to be known; both kinds of k and a threshold where the family is still asked for."""
        possible = WITH_ENCODER if any(name.startswith("encoder.") for name in self.module.shapes) else WITHOUT
        found = self._family_in_file(possible)
        family = found or self.answers.given.get("family")
        if family is not None and family not in (*possible, "jumprelu"):
            raise DialectError(f"{self.where}: family={family!r} cannot be; this file may be of {_listed(possible)}.")
        facts = {
            "model": model(_text(self.config.get("model"))),
            "site": site(_text(self.config.get("site")), width=self.d),
            "family": Fact(found, "what chooses the active latents, by the class of the model", _listed(possible)),
        }
        if family in (None, "topk", *WITHOUT):
            k = self._said("k" if possible is WITHOUT else "top_k")
            facts["k"] = Fact(k, "active latents a token, top_k of TopKSAE or k of MpSAE", f"1 to {self.n:,}")
        if family == "batch_topk":
            facts["k"] = Fact(self.config.get("k"), "mean number of active latents a token, for further training only; "
                              f"its own top_k ({self._said('top_k')}) counts over a whole batch, so divide by the batch's "
                              "size", f"1 to {self.n:,}")  # fmt: skip
        if family in (None, "batch_topk") and possible is WITH_ENCODER:
            said = (self.module.value if self.pickled else self.config.get)("running_threshold")
            facts["threshold"] = Fact(said, "running_threshold of a BatchTopKSAE, which a state dict does not hold",
                                      "a number; leave it out for other families", needed=family is not None)  # fmt: skip
        return family, facts | self._layer_facts()

    def _family_in_file(self, possible: dict[str, str]) -> str | None:
        """The family that a class or a tensor of its own gives away."""
        if self.their_class not in (None, *FAMILIES):
            raise DialectError(f"{self.where} is a {self.their_class}; known are {', '.join(FAMILIES)}.")
        found = FAMILIES.get(self.their_class)
        found = found or ("jumprelu" if self.module.has("thresholds") else None)
        if found == "quantised" or self.module.has("Q"):
            raise DialectError(
                f"{self.where} is a QSAE, whose codes are mixtures of a few learned levels and are hardly ever 0; no family "
                "here has such codes. Train a TopKSAE or JumpSAE instead."
            )
        if found is not None and found not in (*possible, *(("jumprelu",) if possible is WITH_ENCODER else ())):
            raise DialectError(
                f"{self.where} is a {self.their_class or found} with an encoder of another kind than its class has by default "
                f"({self.module.kind('encoder') or 'none'}); only linear encoders, and none for pursuit, are read."
            )
        return found

    def _layer_facts(self) -> dict[str, Fact]:
        facts = {}
        if self.plain:
            norms = torch.cat([rows.norm(dim=1) for rows in self.plain.values()])
            params = self.arguments.get("dictionary_params")
            said = (
                self.module.value(f"{next(iter(self.plain))}.normalization")
                or (params.get("normalization") if isinstance(params, dict) else None)
                or ("identity" if self.module.has("dictionary.dictionary") else None)
            )
            unit = bool((norms - 1).abs().max() <= DRIFT)
            found = said.removeprefix("normalize_") if isinstance(said, str) else ("l2" if unit else None)
            facts["normalization"] = Fact(
                found, f"how its dictionary layer normalises atoms, whose norms are {norms.min():.3g} to {norms.max():.3g} as "
                "they stand", "l2 (the library's default), max_l2, l1, max_l1 or identity", user_wins=said is None,
            )  # fmt: skip
        if self.archetypes:
            said = self.module.value(f"{self.archetypes[0]}.delta") if self.pickled else self.arguments.get("delta")
            facts["delta"] = Fact(said, "the bound of the relaxations' norms", "a number, 0 or more; 1 is its default")
        return facts

    def _check(self, family: str) -> None:
        """Refuse what a pickled model says and a state dict cannot, and answers that cannot be."""
        last, how = self.module.kind("encoder.final_activation"), self._told("normalization")
        n = self._said("nb_concepts") or self._said("n_components")
        if n not in (None, self.n):
            raise DialectError(f"{self.where} says {n} concepts and has a dictionary of {self.n:,}; save it again.")
        if last not in (None, "ReLU") and family != "jumprelu":
            raise DialectError(f"{self.where}: its encoder ends in {last}; only ReLU is read.")
        if hasattr(self.told, "normalization") and how not in layers.NORMALIZATIONS:
            raise DialectError(
                f"{self.where}: normalization={how!r}; expected one of {', '.join(layers.NORMALIZATIONS)}."
            )
        for name, expected in (("delta", "a number, 0 or more"), ("threshold", "a number")):
            value = self._told(name)
            if hasattr(self.told, name) and (not _is_number(value) or (name == "delta" and value < 0)):
                raise DialectError(f"{self.where}: {name}={value!r}; expected {expected}.")

    def _note_drift(self) -> None:
        """Say that atoms are normalised once more, where the file was written between a step and the next forward pass."""
        norms = self.plain[LAYER].norm(dim=1) if LAYER in self.plain else torch.ones(1)
        if self._told("normalization") == "l2" and (norms - 1).abs().max() > 1e-6:
            self.notes.append(
                f"Its atoms had norms from {norms.min():.4g} to {norms.max():.4g} and have 1 here, as behind the library's own "
                "next forward pass."
            )

    def _told(self, name: str) -> Any:
        """A fact, None where it was not asked for."""
        return getattr(self.told, name, None)

    def _atoms(self, layer: str) -> Tensor:
        rows = layers.atoms(self.module, layer, self._told("normalization"), self._told("delta"))
        fused = f"{layer}._fused_dictionary"
        if self.module.value("training") is False and self.module.has(fused):
            kept = self.module.tensor(fused)
            if kept.shape != rows.shape or (kept - rows).abs().max() > 1e-5 * rows.abs().max():
                raise DialectError(
                    f"{self.where} was saved in evaluation mode with another dictionary than its weights give, as after "
                    "load_state_dict in that mode; call train(), then eval(), and save it again."
                )
        return rows

    def _linear(self, family: str) -> Dictionary:
        """A model that chooses among the outputs of its encoder."""
        tied = self._atoms(TIED) if TIED in (*self.plain, *self.archetypes) else None
        if tied is not None:
            self.notes.append("Its encoder was tied to the dictionary; here they are weights of their own.")
        W, b = layers.encoder(self.module, tied)
        tensors = {"W_enc": W, "b_enc": b, "b_dec": torch.zeros(self.d), "W_dec": self._atoms(LAYER)}
        settings, size = {}, "W_dec"
        if family in ("topk", "batch_topk"):
            settings["k"] = self._k()
        if family == "batch_topk":
            tensors["threshold"] = _at_least(torch.tensor(float(self.told.threshold))).expand(self.n)
        if family == "jumprelu":
            tensors["threshold"] = _at_least(self.module.tensor("thresholds").exp())
            bandwidth = self._said("bandwidth") or self._said("bandwith")
            settings |= {"bandwidth": bandwidth} if _is_number(bandwidth) and bandwidth > 0 else {}
        if family == "topk" and LAYER in self.archetypes:
            family, size = "archetypal", "relaxation"
            mixture, relaxation, points = layers.archetypal(self.module, LAYER, self.told.delta)
            del tensors["W_dec"]
            tensors |= {"mixture": mixture, "relaxation": relaxation, "candidates": points}
            tensors["log_scale"] = layers.log_scale(self.module, LAYER)
            settings |= {"candidates": len(points), "delta": float(self.told.delta)}
        return build(self.module.source, family, {name: t.float() for name, t in tensors.items()}, settings, like=size)

    def _pursuit(self, family: str) -> Dictionary:
        """Greedy codes, where ours are the same for every input."""
        rows, k = self._atoms(LAYER), self._k()
        if family == "omp" and k > 1:
            raise DialectError(
                f"{self.where} is an OMPSAE, which fits the codes of each step by ten steps of gradient descent or fewer; ours "
                f"are the least squares themselves, so they differ from k=2 on, and it has k={k}."
            )
        norms = rows.norm(dim=1)
        if (norms - 1).abs().max() > 1e-5:
            raise DialectError(
                f"{self.where}: its atoms have norms from {norms.min():.3g} to {norms.max():.3g}; pursuit is only read with "
                "atoms of norm 1 (normalization l2 without a multiplier)."
            )
        if family != "omp" and not layers.span_positively(rows):
            raise DialectError(
                f"{self.where}: there are inputs on which all its atoms have negative correlations, and its MpSAE then takes "
                "the least negative one, which no family here does. More atoms in more directions exclude that."
            )
        tensors = {"W_dec": rows.float(), "b_dec": torch.zeros(self.d)}
        return build(self.module.source, "matching_pursuit", tensors, {"k": k})

    def _k(self) -> int:
        k = self.told.k
        if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= self.n:
            raise DialectError(f"{self.where}: k={k!r}; expected a whole number from 1 to {self.n:,}, its latents.")
        return k


def _at_least(threshold: Tensor) -> Tensor:
    """The threshold for which `pre > threshold` is their `pre >= threshold`, of codes behind a ReLU."""
    return torch.nextafter(threshold, torch.tensor(-torch.inf)).clamp_min(0.0)


def _listed(possible: dict[str, str]) -> str:
    return ", ".join(f"{family} ({classes})" for family, classes in possible.items())


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
