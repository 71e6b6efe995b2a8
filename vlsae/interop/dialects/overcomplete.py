"""Dictionaries of the library `overcomplete` (Fel et al.): state dicts, training checkpoints and whole pickled models."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlsae.dictionaries.base import Dictionary
from vlsae.interop import overcomplete_layers as layers
from vlsae.interop.answers import Answers, Fact, model, number, one_of, site
from vlsae.interop.dialect import DIALECTS, Dialect, DialectError
from vlsae.interop.dialects.usae import is_universal
from vlsae.interop.fields import describe, ignored_note, other_fields
from vlsae.interop.modules import SavedModule, names
from vlsae.interop.overcomplete_export import LIBRARY, write
from vlsae.interop.overcomplete_pickles import ATTRIBUTES as KNOWN
from vlsae.interop.overcomplete_pickles import check_parts, unknown_attributes
from vlsae.interop.source import Source
from vlsae.interop.weights import build, half_note

FAMILIES = {"SAE": "relu", "TopKSAE": "topk", "BatchTopKSAE": "batch_topk", "JumpSAE": "jumprelu", "RATopKSAE": "topk",
            "RAJumpSAE": "jumprelu", "MpSAE": "matching_pursuit", "OMPSAE": "omp", "QSAE": "quantised"}  # fmt: skip
WITH_ENCODER = {"relu": "SAE", "topk": "TopKSAE, RATopKSAE", "batch_topk": "BatchTopKSAE, and then threshold=... too"}
WITHOUT = {"matching_pursuit": "MpSAE", "omp": "OMPSAE"}
ATTRIBUTES = ("top_k", "k", "threshold_momentum", "dropout", "max_iter", "bandwidth", "bandwith", "kernel_fn")
FIELDS = {"library", "class", "arguments", "model", "site", "how_to_open", "k", "running_threshold", "notes"}
ARGUMENTS = {"input_shape", "nb_concepts", "encoder_module", "dictionary_params", "device", "top_k", "threshold_momentum",
             "kernel", "bandwidth", "bandwith", "points", "delta", "use_multiplier", "k", "dropout", "max_iter"}  # fmt: skip
LAYER_ARGUMENTS = {"normalization", "initializer", "use_multiplier", "device"}
LAYER_TENSORS = {"_weights", "dictionary", "multiplier", "W", "C", "Relax", "_fused_dictionary"}
FINITE = 1e38  # what float32 holds
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
    ends = (("dictionary._weights", ()), ("dictionary.W", ("dictionary.C", "dictionary.Relax")),
            ("dictionary.dictionary", ("encoder.0.weight", "encoder.1.running_mean")),  # before release 0.1
            ("dictionary.dictionary", ("encoder.final_block.0.weight",)))  # fmt: skip
    found = []
    for end, others in ends:
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
        self.arguments = self._table(self.config, "arguments")
        self.params = self._table(self.arguments, "dictionary_params")
        self.pickled = module.kind() is not None
        self.their_class = self._agreed("class", module.kind(), self.config.get("class"))
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
        unknown = self._unknown()
        facts |= other_fields(unknown, (), "overcomplete 0.3")
        self.told = self.answers.settle(**{name: self._checked(name, fact) for name, fact in facts.items()})
        self.notes += ignored_note(unknown, ())
        self._check(family)
        self._note_drift()
        found = self._pursuit(family) if family in WITHOUT else self._linear(family)
        check_parts(self.module, family == "jumprelu")
        kept = f"{LAYER}.Relax" if LAYER in self.archetypes else layers.raw_name(self.module, LAYER)
        self.notes += half_note(self.module.source, self.module.own_name(kept), "overcomplete")
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

    def _table(self, config: dict[str, Any], name: str) -> dict[str, Any]:
        """A field of our configuration that has fields of its own."""
        value = config.get(name)
        if value is not None and not isinstance(value, dict):
            raise DialectError(f"{self.where}: {name}={describe(value)} in its config.json; expected names and values.")
        return value or {}

    def _agreed(self, name: str, *values: Any) -> Any:
        """What several places say, None where none does."""
        said = [value for value in values if value is not None]
        others = [value for value in said if not _same(value, said[0])]
        if others:
            raise DialectError(
                f"{self.where} says {name}={describe(said[0])} in one place and {describe(others[0])} in another (its model, "
                "layers or config.json); set right what is wrong."
            )
        return said[0] if said else None

    def _said(self, name: str) -> Any:
        """An attribute of a pickled model, or an argument of a class that we wrote down."""
        return self._agreed(name, self.module.value(name) if self.pickled else None, self.arguments.get(name))

    def _checked(self, name: str, fact: Fact) -> Fact:
        """A fact whose value from the file is held to the check of answers."""
        if fact.found is None or fact.check is None:
            return fact
        try:
            return replace(fact, found=fact.check(fact.found))
        except ValueError as error:
            raise DialectError(f"{self.where} says {name}={describe(fact.found)}: {describe(error, 200)}.") from error

    def _unknown(self) -> dict[str, Any]:
        """What is set in the configuration or in a pickled model that no release knows."""
        places = (("", self.config, FIELDS), ("arguments.", self.arguments, ARGUMENTS),
                  ("dictionary_params.", self.params, LAYER_ARGUMENTS))  # fmt: skip
        written = {
            f"{at}{name}": value for at, held, known in places for name, value in held.items() if name not in known
        }
        return written | unknown_attributes(self.module)

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
            k = self._agreed("k", k, self.config.get("k"))
            facts["k"] = Fact(k, "active latents a token, top_k of TopKSAE or k of MpSAE", f"1 to {self.n:,}",
                              check=number(1, self.n, whole=True))  # fmt: skip
        if family == "batch_topk":
            facts["k"] = Fact(self.config.get("k"), "mean number of active latents a token, for further training only; "
                              f"its own top_k ({self._said('top_k')}) counts over a whole batch, so divide by the batch's "
                              "size", f"1 to {self.n:,}", check=number(1, self.n, whole=True))  # fmt: skip
        if family in (None, "batch_topk") and possible is WITH_ENCODER:
            name = "running_threshold"
            held = (
                self.module.number(name) if self.module.has(name) else self.module.value(name) if self.pickled else None
            )
            said = self._agreed(name, held, self.config.get(name))
            facts["threshold"] = Fact(said, "running_threshold of a BatchTopKSAE, which a state dict does not hold",
                                      "a number; leave it out for other families", needed=family is not None,
                                      check=number(-FINITE, FINITE))  # fmt: skip
        return family, facts | self._layer_facts()

    def _family_in_file(self, possible: dict[str, str]) -> str | None:
        """The family that a class or a tensor of its own gives away."""
        if self.their_class not in (None, *FAMILIES):
            raise DialectError(f"{self.where} is a {describe(self.their_class)}; known are {', '.join(FAMILIES)}.")
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
            held = [_short_name(self.module.value(f"{layer}.normalization")) for layer in self.plain]
            old = "identity" if self.module.has("dictionary.dictionary") else None
            said = self._agreed("normalization", *held, self.params.get("normalization"), old)
            unit = bool((norms - 1).abs().max() <= DRIFT)
            found = said if said is not None else "l2" if unit else None
            facts["normalization"] = Fact(
                found, f"how its dictionary layer normalises atoms, whose norms are {norms.min():.3g} to {norms.max():.3g} as "
                "they stand", "l2 (the library's default), max_l2, l1, max_l1 or identity", user_wins=said is None,
                check=one_of(*layers.NORMALIZATIONS),
            )  # fmt: skip
        if self.archetypes:
            held = [self.module.value(f"{layer}.delta") for layer in self.archetypes if self.pickled]
            facts["delta"] = Fact(self._agreed("delta", *held, self.arguments.get("delta")),
                                  "the bound of the relaxations' norms", "a number, 0 or more; 1 is its default",
                                  check=number(0, FINITE))  # fmt: skip
        return facts

    def _check(self, family: str) -> None:
        """Refuse sizes, tensors and a class that contradict each other."""
        n = self._said("nb_concepts") or self._said("n_components")
        for what, said, size in (("concepts", n, self.n), ("dimensions", self.arguments.get("input_shape"), self.d)):
            if said not in (None, size):
                raise DialectError(
                    f"{self.where} says {describe(said)} {what} and has a dictionary of {size:,}; save it again."
                )
        own = KNOWN.get(self.their_class, set()) if self.pickled else set()
        own = own | ({"thresholds"} if family == "jumprelu" else set())
        left = [name for name in self.module.shapes if not _is_known(name, own)]
        if left:
            raise DialectError(
                f"{self.where} also holds {describe(', '.join(left), 200)}, whose part in the codes is unknown; no release has "
                "such tensors there. Where they are no part of the model, save its state_dict() alone."
            )
        if not self.pickled and self.their_class and self.their_class.startswith("RA") != (LAYER in self.archetypes):
            raise DialectError(
                f"{self.where}: config.json says {self.their_class}, whose dictionary layer has other tensors than the file; "
                "set right which class it is."
            )

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
        if self.module.value(f"{layer}.training") is False and self.module.has(fused):
            kept = self.module.tensor(fused)
            bound = max(1e-5, 8 * torch.finfo(self.module.dtype(fused)).eps)  # a norm and two divisions, rounded
            if kept.shape != rows.shape or (kept - rows).abs().max() > bound * rows.abs().max():
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
            settings["k"] = self.told.k
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
        rows, k = self._atoms(LAYER), self.told.k
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


def _at_least(threshold: Tensor) -> Tensor:
    """The threshold for which `pre > threshold` is their `pre >= threshold`, of codes behind a ReLU."""
    return torch.nextafter(threshold, torch.tensor(-torch.inf)).clamp_min(0.0)


def _listed(possible: dict[str, str]) -> str:
    return ", ".join(f"{family} ({classes})" for family, classes in possible.items())


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _same(value: Any, other: Any) -> bool:
    """Whether two places say the same, numbers to the rounding of float32."""
    if _is_number(value) and _is_number(other):
        return math.isclose(value, other, rel_tol=1e-6)
    return type(value) is type(other) and value == other


def _short_name(normalization: Any) -> Any:
    return normalization.removeprefix("normalize_") if isinstance(normalization, str) else normalization


def _is_known(name: str, own: set[str]) -> bool:
    """Whether a tensor is of a dictionary layer, of an encoder (which is looked at where it is read), or one of these."""
    layer, _, end = name.rpartition(".")
    if layer in (LAYER, TIED):
        return end in LAYER_TENSORS
    return name in own or (name.startswith("encoder.") and not name.startswith(f"{TIED}."))
