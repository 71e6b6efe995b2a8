"""What SAELens writes into `cfg.json`, of every version, looked at field by field."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NoReturn

from vlsae.backbones.site import Site
from vlsae.dictionaries.checkpoint import FACTS
from vlsae.interop.dialect import DialectError
from vlsae.interop.fields import describe
from vlsae.interop.saelens_fields import ALL, SOME
from vlsae.interop.source import Source

LINEAR = ("W_enc", "b_enc", "W_dec", "b_dec")
TENSORS = {  # of the architectures that are read; a batch's k is a threshold after training
    "standard": LINEAR,
    "topk": LINEAR,
    "abstopk": LINEAR,
    "jumprelu": (*LINEAR, "threshold"),
    "gated": ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"),
    "batchtopk": (*LINEAR, "topk_threshold"),
    "matryoshka_batchtopk": (*LINEAR, "topk_threshold"),
    "matching_pursuit": ("W_dec", "b_dec"),
    "transcoder": LINEAR,
    "jumprelu_transcoder": (*LINEAR, "threshold"),
}
BATCHES = ("batchtopk", "matryoshka_batchtopk")  # are saved as "jumprelu" after training
REFUSED = {
    "skip_transcoder": "adds a linear map of the input to its output",
    "jumprelu_skip_transcoder": "adds a linear map of the input to its output",
    "temporal": "predicts a token from the tokens before it",
}
NORMALISE = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm", "covariance_whitening")
OLD_NAMES = {"hook_point": "hook_name", "hook_point_layer": "hook_layer", "hook_point_head_index": "hook_head_index",
             "activation_fn_str": "activation_fn"}  # fmt: skip
OURS = {*FACTS, "model", "site", "notes", "opened_from"}  # names of our own in a dictionary's metadata
USED = {"device"}.union(ALL, *SOME.values())  # in the weights and settings now, where folding may have changed them
DTYPES = ("float32", "float64", "float16", "bfloat16")
LARGEST = 1e30  # of numbers in a configuration
PREFIXES = ("open_clip:", "hf:")
EMBEDDED = ("tiny", "tiny16")


class SaelensConfig:
    """A configuration with the names of SAELens 6, its values checked when they are asked for.

    Args:
        source: a folder with `cfg.json`; from before version 6 with everything at the top level.

    Attributes:
        architecture: "standard", "topk", ... as in `TENSORS`.
        says: the fields of the top level, by their names of version 6; codes depend on no others.
        facts: the same and those of `metadata`, which say where it is from.

    Raises:
        DialectError: for an architecture or activation that no family computes, or that is told in two ways.
    """

    def __init__(self, source: Source):
        self.where = source.folder / "cfg.json"
        self.says = {OLD_NAMES.get(name, name): value for name, value in source.config.items()}
        activations = [source.config.get(name) for name in ("activation_fn", "activation_fn_str")]
        self.says["activation_fn"] = self._agreed("activation_fn", activations)
        inner = source.config.get("metadata") or {}
        if not isinstance(inner, dict):
            self.wrong("metadata", inner, "fields by their names")
        version = self.says.get("sae_lens_version") or inner.get("sae_lens_version")
        major = re.match(r"\d{1,4}", version) if isinstance(version, str) else None
        self.modern = major is not None and int(major.group()) >= 6
        self.facts = {**self.says, **inner} if self.modern else {**inner, **self.says}
        details = self.facts.get("training_architecture_details")
        self.details = details if isinstance(details, dict) else {}
        kwargs = self.says.get("activation_fn_kwargs") or {}
        if not isinstance(kwargs, dict):
            self.wrong("activation_fn_kwargs", kwargs, "fields by their names")
        self.kwargs = kwargs
        self.architecture = self._architecture()

    def _architecture(self) -> str:
        named = self.text("architecture", "standard", (*TENSORS, *REFUSED))
        if named in REFUSED:
            raise DialectError(
                f"{self.where} is a SAELens {named!r}, which {REFUSED[named]}; no family here does that."
            )
        if self.kwargs.get("postact_fn") is not None:
            self.wrong("postact_fn", self.kwargs["postact_fn"], "none, since what TopK keeps is rectified here")
        own = "topk" if named in ("topk", "abstopk") else "relu"
        activation = self.text("activation_fn", own)
        if named == "standard" and activation == "topk" and not self.modern:
            return "topk"
        if activation != own:
            raise DialectError(
                f"{self.where} says architecture={named!r} with activation_fn={describe(activation)!r}; expected {own!r}, or "
                "before version 6 'topk' for the standard one. No family computes another activation, and another one would "
                "give other codes; correct the one that is wrong."
            )
        return named

    def _agreed(self, name: str, told: Sequence[Any]) -> Any:
        """What all places of the file say that say it; None where none does."""
        found = [value for value in told if value is not None]
        if any(value != found[0] for value in found[1:]):
            self.wrong(name, " and ".join(describe(value, 30) for value in found), "the same in all places of the file")
        return found[0] if found else None

    def text(self, name: str, default: str, choices: Sequence[str] = ()) -> str:
        """A word, one of `choices` where there are any; the default where the file has none."""
        value = self.says.get(name)
        value = default if value is None else value
        if not isinstance(value, str) or (choices and value not in choices):
            self.wrong(name, value, f"one of {', '.join(choices)}" if choices else "a word")
        return value

    def truth(self, name: str, default: bool) -> bool:
        value = self.says.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            self.wrong(name, value, "true or false")
        return value

    def number(self, name: str, value: Any, least: float = 0.0) -> float | None:
        """A finite number of at least `least`; None where there is none."""
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= LARGEST:
            self.wrong(name, value, f"a finite number of at least {least:g}")
        return value

    def whole(self, name: str, value: Any) -> int | None:
        """A positive whole number; None where there is none."""
        value = self.number(name, value, least=1)
        if value is not None and value != int(value):
            self.wrong(name, value, "a whole number")
        return None if value is None else int(value)

    def wrong(self, name: str, value: Any, expected: str) -> NoReturn:
        raise DialectError(f"{self.where}: {name} is {describe(value, 80)!r}; expected {expected}.")

    @property
    def normalise(self) -> str:
        """How inputs are normalised; before version 6 also a boolean."""
        value = self.says.get("normalize_activations")
        if isinstance(value, bool):
            return "expected_average_only_in" if value else "none"
        return self.text("normalize_activations", "none", NORMALISE)

    @property
    def k(self) -> float | None:
        """Active latents a token; of a batch, not always whole, and in inference checkpoints among the details of training."""
        of_a_batch = self.architecture in ("jumprelu", *BATCHES)
        places = (self.says, self.kwargs, self.details if of_a_batch else {})
        return self._agreed("k", [self.number("k", place.get("k"), least=1e-9) for place in places])

    @property
    def trained_as(self) -> str:
        """The architecture in training, where a checkpoint for inference has forgotten it but for a remark."""
        trained = self.facts.get("training_architecture")
        batch = trained in BATCHES and self.architecture == "jumprelu"
        if not batch or self.k is None:
            return self.architecture
        return trained if self.details.get("matryoshka_widths") else "batchtopk"

    @property
    def widths(self) -> list[int]:
        """Widths of Matryoshka levels, with the whole as the last, which SAELens adds too."""
        whole = self.whole("d_sae", self.says.get("d_sae"))
        told = [value for place in (self.says, self.details) if (value := place.get("matryoshka_widths"))]
        for value in told or [None]:
            if not isinstance(value, list) or any(type(width) is not int for width in value):
                self.wrong("matryoshka_widths", value, "a list of rising widths")
        return self._agreed("matryoshka_widths", [v if v[-1] == whole else [*v, whole] for v in told])

    @property
    def model(self) -> str | None:
        """The model by our name, where the file has one."""
        name = self.facts.get("model_name")
        known = isinstance(name, str) and (name in EMBEDDED or name.startswith(PREFIXES))
        return name if known else None

    @property
    def site(self) -> str | None:
        """The site, where the file has it by our name; a hook of a language model could be any model's."""
        name = self.facts.get("hook_name")
        try:
            return str(Site.parse(name)) if isinstance(name, str) else None
        except ValueError:
            return None

    @property
    def reads_heads(self) -> bool:
        """Whether the input is the outputs of attention heads, side by side."""
        hook = self.facts.get("hook_name")
        old = not self.modern and isinstance(hook, str) and "hook_z" in hook
        return self.text("reshape_activations", "hook_z" if old else "none", ("none", "hook_z")) == "hook_z"

    @property
    def dtype(self) -> str:
        """What SAELens computes in."""
        return self.text("dtype", "float32", (*DTYPES, *(f"torch.{name}" for name in DTYPES))).removeprefix("torch.")

    @property
    def fields(self) -> dict[str, Any]:
        """All that codes may depend on: fields of the top level, and arguments of the activation."""
        return {**self.says, **{f"activation_fn_kwargs.{name}": value for name, value in self.kwargs.items()}}

    def rest(self) -> dict[str, Any]:
        """What else the file says, by its own names."""
        return {name: value for name, value in self.facts.items() if name not in OURS | USED}
