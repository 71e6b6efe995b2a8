"""What SAELens writes into `cfg.json`, of every version, looked at field by field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlsae.backbones.site import Site
from vlsae.dictionaries.checkpoint import FACTS
from vlsae.interop.dialect import DialectError
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
REFUSED = {
    "skip_transcoder": "adds a linear map of the input to its output",
    "jumprelu_skip_transcoder": "adds a linear map of the input to its output",
    "temporal": "predicts a token from the tokens before it",
}
NORMALISE = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm", "covariance_whitening")
OLD_NAMES = {"hook_point": "hook_name", "hook_point_layer": "hook_layer", "hook_point_head_index": "hook_head_index",
             "activation_fn_str": "activation_fn"}  # fmt: skip
OURS = {*FACTS, "model", "site", "notes", "opened_from"}  # names of our own in a dictionary's metadata
USED = {"d_in", "d_sae", "d_out", "dtype", "device", "metadata", "architecture", "activation_fn", "activation_fn_kwargs", "k",
        "apply_b_dec_to_input", "normalize_activations", "reshape_activations", "rescale_acts_by_decoder_norm",
        "finetuning_scaling_factor", "residual_threshold", "max_iterations", "stop_on_duplicate_support",
        "matryoshka_widths"}  # fmt: skip  # in the weights and settings now, where folding may have changed them
LARGEST = 1e30  # of numbers in a configuration
PREFIXES = ("open_clip:", "hf:")
EMBEDDED = ("tiny", "tiny16")


class SaelensConfig:
    """A configuration with the names of SAELens 6, its values checked when they are asked for.

    Args:
        source: a folder with `cfg.json`; from before version 6 with everything at the top level.

    Attributes:
        architecture: "standard", "topk", ... as in `TENSORS`.
        says: all fields by their names of version 6.

    Raises:
        DialectError: for an architecture or activation that no family computes.
    """

    def __init__(self, source: Source):
        self.where = source.folder / "cfg.json"
        inner = source.config.get("metadata")
        everything = {**(inner if isinstance(inner, dict) else {}), **source.config}
        self.says = {OLD_NAMES.get(name, name): value for name, value in everything.items()}
        details = self.says.get("training_architecture_details")
        self.details = details if isinstance(details, dict) else {}
        self.architecture = self._architecture()

    def _architecture(self) -> str:
        named = self.text("architecture", "standard", (*TENSORS, *REFUSED))
        if named in REFUSED:
            raise DialectError(
                f"{self.where} is a SAELens {named!r}, which {REFUSED[named]}; no family here does that."
            )
        activation = self.text("activation_fn", "topk" if named == "topk" else "relu")
        if named == "standard" and activation == "topk":
            return "topk"
        if activation not in ("relu", "topk") or (activation == "topk") > (named in ("topk", "abstopk")):
            raise DialectError(
                f"{self.where} says architecture={named!r} with activation_fn={activation!r}; expected relu, or topk for the "
                "standard and topk ones. No family computes another activation, and another one would give other codes."
            )
        return named

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

    def wrong(self, name: str, value: Any, expected: str) -> None:
        raise DialectError(f"{self.where}: {name} is {str(value)[:80]!r}; expected {expected}.")

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
        kwargs = self.says.get("activation_fn_kwargs")
        places = (self.says, kwargs if isinstance(kwargs, dict) else {}, self.details)
        return self.number("k", next((place["k"] for place in places if place.get("k") is not None), None), least=1e-9)

    @property
    def trained_as(self) -> str:
        """The architecture in training, where a checkpoint for inference has forgotten it but for a remark."""
        trained = self.says.get("training_architecture")
        batch = trained in ("batchtopk", "matryoshka_batchtopk") and self.architecture == "jumprelu"
        if not batch or self.k is None:
            return self.architecture
        return trained if self.details.get("matryoshka_widths") else "batchtopk"

    @property
    def widths(self) -> list[int]:
        """Widths of Matryoshka levels, with the whole as the last, which SAELens adds too."""
        value = self.says.get("matryoshka_widths") or self.details.get("matryoshka_widths")
        if not isinstance(value, list) or not value or any(type(width) is not int for width in value):
            self.wrong("matryoshka_widths", value, "a list of rising widths")
        whole = self.whole("d_sae", self.says.get("d_sae"))
        return value if value[-1] == whole else [*value, whole]

    @property
    def model(self) -> str | None:
        """The model by our name, where the file has one."""
        name = self.says.get("model_name")
        known = isinstance(name, str) and (name in EMBEDDED or name.startswith(PREFIXES))
        return name if known else None

    @property
    def site(self) -> str | None:
        """The site, where the file has it by our name; a hook of a language model could be any model's."""
        name = self.says.get("hook_name")
        try:
            return str(Site.parse(name)) if isinstance(name, str) else None
        except ValueError:
            return None

    @property
    def reads_heads(self) -> bool:
        """Whether the input is the outputs of attention heads, side by side."""
        hook = self.says.get("hook_name")
        old = "sae_lens_version" not in self.says and isinstance(hook, str) and "hook_z" in hook
        return self.text("reshape_activations", "hook_z" if old else "none", ("none", "hook_z")) == "hook_z"

    def facts(self) -> dict[str, Any]:
        """What else the file says, by its own names."""
        return {name: value for name, value in self.says.items() if name not in OURS | USED}
