"""What a run of dictionary_learning says beside its weights, of every version and its copies, looked at field by field."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import cached_property
from typing import Any

from torch import Tensor

from vlsae.backbones.site import Site
from vlsae.interop.answers import Fact, model, number, site, truth
from vlsae.interop.dialect import DialectError
from vlsae.interop.fields import describe, ignored_note, other_fields
from vlsae.interop.source import Source

LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
CLASSES = {  # our family, and their names of our tensors
    "AutoEncoder": ("relu", LINEAR | {"b_dec": "bias"}),
    "AutoEncoderNew": ("relu", LINEAR | {"b_dec": "decoder.bias"}),
    "GatedAutoEncoder": ("gated", LINEAR | {"b_dec": "decoder_bias", "b_enc": "gate_bias", "b_mag": "mag_bias",
                                            "r_mag": "r_mag"}),
    "JumpReluAutoEncoder": ("jumprelu", PLAIN | {"threshold": "threshold"}),
    "AutoEncoderTopK": ("topk", LINEAR | {"b_dec": "b_dec"}),
    "BatchTopKSAE": ("batch_topk", LINEAR | {"b_dec": "b_dec"}),
    "MatryoshkaBatchTopKSAE": ("nested_dictionary", PLAIN),
}  # fmt: skip
BATCH = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")
TOPK = ("AutoEncoderTopK", *BATCH)  # may store `k` and `threshold`; older versions did not
SPELLINGS = {"MatroyshkaBatchTopKSAE": "MatryoshkaBatchTopKSAE"}  # of versions before 0.1.0, and sae-for-vlm's
READ = {"dict_class", "activation_dim", "dict_size", "group_sizes", "k", "layer", "lm_name", "submodule_name"}
TRAINING = {"activation_queue_length", "anneal_start", "auxk_alpha", "bandwidth", "decay_start", "device", "gp_reg_coeff",
            "group_fractions", "group_weights", "l0_penalty", "l1_penalty", "lambda_warm_steps", "lr", "n_sparsity_updates",
            "p_end", "p_start", "resample_steps", "seed", "sparsity_function", "sparsity_penalty", "sparsity_queue_length",
            "sparsity_warmup_steps", "steps", "target_l0", "threshold_beta", "threshold_start_step", "top_k_aux",
            "trainer_class", "wandb_name", "warmup_steps"}  # fmt: skip
FLAG = "apply_b_dec_to_input"  # an attribute of JumpReluAutoEncoder, which no version writes
SCALED = ("StandardTrainerNew", "GatedTrainerNew")  # in their first versions, each batch by its own mean norm
LARGEST = 1e38  # float32 has little more
PLACES = {"in": ", its input", "in_and_out": ", from its input to its output"}  # what a buffer's `io` adds to a module
BACKUP = "A backup within a run: biases and thresholds are scaled by its norm_factor, as the run's end would have."
TRANSCODER = "A transcoder (io=in_and_out): what it gives stands for the output of {module}, not for what it reads."
EARLY = (
    "The first versions of {trainer} scaled activations to a mean norm of sqrt(d), and no file says so: vlsae doctor tells "
    "whether these weights want it."
)


class Run:
    """The weights of one dictionary, and what is said about them.

    Args:
        source: `ae.pt` or `ae_{step}.pt`. A backup, which the newest versions write under the first name while they train,
            has the state dict under "ae", beside an optimiser's.

    Attributes:
        trainer, buffer: the two parts of `config.json`.
        named: whether the file has a name that the library gives.
    """

    def __init__(self, source: Source):
        self.source = source
        self.named = re.fullmatch(r"ae(_\d+)?\.pt", source.weights.name) is not None
        self.above = source.folder.name == "checkpoints"
        config = source.json("config.json") or (source.json("../config.json") if self.above and self.named else {})
        parts = (config.get("trainer"), config.get("buffer"))
        self.trainer, self.buffer = (part if isinstance(part, dict) else {} for part in parts)

    @cached_property
    def backup(self) -> bool:
        return isinstance(self.source.content, dict) and isinstance(self.source.content.get("ae"), dict)

    @cached_property
    def held(self) -> list[str]:
        """Names of the dictionary's own tensors."""
        names = list(self.source.values)
        return [name.removeprefix("ae.") for name in names if name.startswith("ae.")] if self.backup else names

    def tensor(self, name: str) -> Tensor:
        return self.source.tensor(self._stored(name))

    def number(self, name: str) -> float | int:
        return self.source.number(self._stored(name))

    def _stored(self, name: str) -> str:
        return f"ae.{name}" if self.backup else name

    @cached_property
    def scale(self) -> float:
        """What activations were divided by before weights read them; files other than backups are scaled back."""
        if not self.backup or "norm_factor" not in self.source.values:
            return 1.0
        factor = self.source.number("norm_factor")
        if not factor > 0:
            raise DialectError(f"{self.source.weights}: norm_factor={factor} must be positive.")
        return float(factor)

    @cached_property
    def candidates(self) -> list[str]:
        """The classes whose tensors these are."""
        held, fitting = set(self.held), []
        for kind, (_, names) in CLASSES.items():
            needed = set(names.values()) | ({"group_sizes"} if kind == "MatryoshkaBatchTopKSAE" else set())
            if needed <= held <= needed | ({"k", "threshold"} if kind in TOPK else set()):
                fitting.append(kind)
        return fitting

    @cached_property
    def dict_class(self) -> str | None:
        """The class that the configuration names, else the only one whose tensors these are."""
        named = self.trainer.get("dict_class")
        if named is None and self.candidates:
            return self.candidates[0] if len(self.candidates) == 1 else None
        named = SPELLINGS.get(named, named) if isinstance(named, str) else named
        if named not in list(CLASSES):
            raise DialectError(
                f"{self.source.weights} is of the class {describe(named)!r}, with {self.listed} tensors; expected one of "
                f"{', '.join(CLASSES)}."
            )
        return named

    @property
    def listed(self) -> str:
        """The names, for messages."""
        return describe(", ".join(self.held[:12]) or "no", 200)

    def facts(self, kind: str | None) -> dict[str, Fact]:
        """What is needed, and which of it is said; all that could be, where `kind` is not known yet."""
        facts = self._place()
        choices = f"{' or '.join(self.candidates)} (the latter also needs its threshold=...)"
        facts["dict_class"] = Fact(self.dict_class, "its class", choices)
        if kind in (None, *TOPK):
            facts["k"] = Fact(self._k(), "active latents a token", "a whole number", check=number(1, whole=True))
        if kind in (None, *BATCH):
            facts["threshold"] = Fact(self.threshold, "the threshold on codes, which the file does not have",
                                      "a number of at least 0; 0 for every positive code, as the library then gives them",
                                      needed=kind is not None, check=number(0, LARGEST))  # fmt: skip
        if kind == "JumpReluAutoEncoder":
            facts[FLAG] = Fact(self._flag(), "whether b_dec is taken off the input", "", user_wins=True, check=truth)
        return facts | other_fields(self.trainer, self._known(kind), "dictionary_learning 0.1")

    def _known(self, kind: str | None) -> set[str]:
        return READ | TRAINING | ({FLAG} if kind == "JumpReluAutoEncoder" else set())

    def _place(self) -> dict[str, Fact]:
        folder = self.source.folder.resolve()
        says = f"folder {(folder.parent if self.above else folder).name}"  # sae-for-vlm says it nowhere else
        lm, module = self.trainer.get("lm_name"), self.trainer.get("submodule_name")
        where = f"{describe(module, 40)}, layer {describe(self.trainer.get('layer'), 8)}{PLACES.get(self._io(), '')}"
        return {
            "model": model(_our_model(lm), says=lm or says),
            "site": site(our_site(module), says=where if module else says),
        }

    def _io(self) -> str | None:
        io = self.buffer.get("io")
        return io if isinstance(io, str) else None

    def _flag(self) -> bool:
        flag = self.trainer.get(FLAG, False)  # its own loader leaves it off
        if not isinstance(flag, bool):
            raise DialectError(f"{self.source.folder}: {FLAG}={describe(flag)} of config.json must be true or false.")
        return flag

    def _k(self) -> int | None:
        said = [self.number("k")] if "k" in self.held else []
        said += [self.trainer["k"]] if self.trainer.get("k") is not None else []
        counts: set[Any] = set()
        with suppress(ValueError):
            counts = {number(1, whole=True)(k) for k in said}
        if said and len(counts) != 1:
            raise DialectError(
                f"{self.source.weights} and its config.json say k={describe(said)}; expected one whole number from 1."
            )
        return counts.pop() if counts else None

    @cached_property
    def threshold(self) -> float | None:
        """The stored threshold, where training ever set it; until then it is -1."""
        value = float(self.number("threshold")) * self.scale if "threshold" in self.held else -1.0
        if value >= LARGEST:
            raise DialectError(
                f"{self.source.weights}: threshold={value} is no number of float32; expected a smaller one."
            )
        return value if value >= 0 else None

    def check_sizes(self, sizes: dict[str, Any]) -> None:
        """Hold what the configuration says to what the tensors are."""
        for name, size in sizes.items():
            if self.trainer.get(name) not in (None, size):
                said = describe(self.trainer[name])
                raise DialectError(f"{self.source.weights} has {name}={size}, its config.json says {said}.")

    def notes(self, kind: str) -> list[str]:
        """What is good to know of a file that was opened as this class."""
        trainer = self.trainer.get("trainer_class")
        notes = ignored_note(self.trainer, self._known(kind))
        if kind == "AutoEncoderTopK" and self.threshold is not None:
            notes.append(f"Codes are the k largest; the threshold {self.threshold} plays no part.")
        if self._io() == "in_and_out":
            notes.append(TRANSCODER.format(module=describe(self.trainer.get("submodule_name") or "the module", 40)))
        if isinstance(trainer, str) and trainer in SCALED:
            notes.append(EARLY.format(trainer=trainer))
        return notes + ([BACKUP] if self.scale != 1 else [])


def _our_model(name: Any) -> str | None:
    """A name that we wrote there; their own are names of language models."""
    ours = isinstance(name, str) and (name in ("tiny", "tiny16") or name.startswith(("open_clip:", "hf:")))
    return name if ours else None


def our_site(name: Any) -> str | None:
    """A site that we wrote there."""
    try:
        return str(Site.parse(name)) if isinstance(name, str) else None
    except ValueError:
        return None
