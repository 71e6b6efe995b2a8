"""Folders of SAELens, whatever its version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlsae.dictionaries.base import Dictionary
from vlsae.dictionaries.pursuit import UNIT
from vlsae.dictionaries.transform import InputTransform
from vlsae.interop import answers as ask
from vlsae.interop.answers import Answers, Fact, number
from vlsae.interop.dialect import DIALECTS, Dialect, DialectError
from vlsae.interop.fields import describe, ignored_note, other_fields
from vlsae.interop.saelens_config import BATCHES, LARGEST, REFUSED, TENSORS, SaelensConfig
from vlsae.interop.saelens_fields import known
from vlsae.interop.saelens_writing import write_saelens
from vlsae.interop.source import Source
from vlsae.interop.weights import build, codes_times, read_by, rescaled

FAMILIES = {"standard": "relu", "topk": "topk", "abstopk": "abs_topk", "jumprelu": "jumprelu", "gated": "gated",
            "batchtopk": "batch_topk", "matryoshka_batchtopk": "nested_dictionary", "transcoder": "transcoder",
            "matching_pursuit": "matching_pursuit", "jumprelu_transcoder": "jumprelu"}  # fmt: skip
CHOOSES = ("topk", "abstopk", *BATCHES)
TRANSCODERS = ("transcoder", "jumprelu_transcoder")
SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"
FINE_TUNED = ("scaling_factor", "finetuning_scaling_factor")  # one number a latent, on codes on their way out


@DIALECTS.register("saelens")
class Saelens(Dialect):
    """`cfg.json` and `sae_weights.safetensors`, for inference and in training, from before version 6 to 6.54.

    Codes are those of the finished dictionary, as SAELens makes it of a checkpoint in training: scale and whitening of inputs
    are in the weights, decoder norms that training multiplies into pre-activations in the encoder, and a choice over a batch
    is its threshold.
    """

    name = "saelens"
    project = "SAELens"

    def sniff(self, source: Source) -> bool:
        config = source.config
        metadata = config.get("metadata")
        ours = isinstance(metadata, dict) and "vlsae" in metadata
        if ours or source.weights.suffix != ".safetensors" or not (source.folder / "cfg.json").is_file():
            return False
        sized = "d_in" in config and "d_sae" in config
        return sized and (source.has("W_dec", "b_dec") or str(config.get("architecture")) in REFUSED)

    def read(self, source: Source, answers: Answers) -> Dictionary:
        config = SaelensConfig(source)
        names = _names(source, config)
        n, d = _sizes(source, config, names)
        factor = _factor(source, config)
        said = answers.settle(**_facts(config, n, d, factor))
        notes = _notes(config)
        settings = _settings(config, getattr(said, "k", None), n, d, notes)
        scale = float(getattr(said, "scale", None) or 1.0)
        tensors = _as_ours(config, {name: source.tensor(name) for name in names}, scale, notes)
        if config.normalise == "covariance_whitening":
            tensors = _whitened(source, tensors)
        transform = _transform(config, d, scale)
        if transform.kind == "unit":
            tensors = rescaled(tensors, d**0.5)
        tensors = {name: value.float() for name, value in tensors.items()}
        dictionary = build(source, FAMILIES[config.trained_as], tensors, settings, transform)
        dictionary.metadata = {**config.rest(), "model": said.model, "site": said.site}
        notes += ignored_note(config.fields, known(config.architecture))
        if notes:
            dictionary.metadata["notes"] = notes
        return dictionary

    def write(self, dictionary: Dictionary, folder: Path) -> None:
        write_saelens(dictionary, folder)


def _names(source: Source, config: SaelensConfig) -> list[str]:
    """The tensors of the file, after a look that they are those of the architecture."""
    needed = list(TENSORS[config.architecture])
    if config.architecture == "jumprelu" and source.has("log_threshold"):
        needed[needed.index("threshold")] = "log_threshold"  # training checkpoints before 6.50
    present = [name for name in FINE_TUNED if source.has(name) and config.architecture != "matching_pursuit"]
    missing, more = set(needed) - set(source.shapes), set(source.shapes) - {*needed, *present}
    if missing or more or len(present) > 1:
        raise DialectError(
            f"{source.weights} misses {', '.join(sorted(missing)) or 'nothing'} and also has "
            f"{', '.join(sorted(more)[:8]) or 'nothing'}; a SAELens {config.architecture!r} consists of {', '.join(needed)}."
        )
    return [*needed, *present]


def _sizes(source: Source, config: SaelensConfig, names: list[str]) -> tuple[int, int]:
    """Latents and width, by the tensors, which must agree with each other and with the configuration."""
    if len(source.shapes["W_dec"]) != 2:
        raise DialectError(f"{source.weights}: W_dec has shape {list(source.shapes['W_dec'])}; expected a matrix.")
    n, d = source.shapes["W_dec"]
    shapes = {"W_dec": (n, d), "W_enc": (d, n), "b_dec": (d,), "topk_threshold": ()}
    if config.architecture in TRANSCODERS and source.shapes["W_enc"] != (d, n):
        raise DialectError(
            f"{source.weights} reads vectors of width {source.shapes['W_enc'][:1]} and writes those of width {d}; only a "
            "transcoder between equal widths can be opened."
        )
    wrong = [name for name in names if source.shapes[name] != shapes.get(name, (n,))]
    if wrong:
        raise DialectError(
            f"{source.weights}: {wrong[0]} has shape {list(source.shapes[wrong[0]])}; W_dec {[n, d]} makes it "
            f"{list(shapes.get(wrong[0], (n,)))}."
        )
    if config.architecture in TRANSCODERS and config.whole("d_out", config.says.get("d_out")) not in (None, d):
        config.wrong("d_out", config.says["d_out"], f"{d}, by the shape of W_dec")
    said = [config.whole(name, config.says.get(name)) for name in ("d_in", "d_sae")]
    if said != [d, n]:
        raise DialectError(
            f"{config.where} says d_in, d_sae = {said}; the tensors of {source.weights.name} say {[d, n]}."
        )
    return n, d


def _factor(source: Source, config: SaelensConfig) -> float | None:
    """The scale of inputs that a training checkpoint has not worked into its weights yet."""
    if config.architecture in TRANSCODERS and config.normalise not in ("none", "expected_average_only_in"):
        raise DialectError(
            f"{config.where} is a transcoder behind {config.normalise!r}, whose output SAELens leaves as it is; a transform "
            "of ours would be undone on it."
        )
    if config.architecture == "matching_pursuit" and config.normalise in (
        "constant_norm_rescale",
        "covariance_whitening",
    ):
        raise DialectError(
            f"{config.where}: matching pursuit behind {config.normalise!r} is no pursuit over these atoms."
        )
    scaler = source.json(SCALER)
    factor = config.number(f"scaling_factor of {SCALER}", scaler.get("scaling_factor"), least=1e-30)
    scaled, white = config.normalise == "expected_average_only_in", config.normalise == "covariance_whitening"
    whitens = scaler.get("has_whitening", white)
    if not isinstance(whitens, bool):
        config.wrong(f"has_whitening of {SCALER}", whitens, "true or false")
    if (factor not in (None, 1.0) and not scaled) or whitens != white:
        raise DialectError(
            f"{source.folder / SCALER} says scaling_factor={factor} and has_whitening={whitens}, and cfg.json "
            f"normalize_activations={config.normalise!r}; they contradict each other. Correct the one that is wrong."
        )
    if white and not (source.folder / WHITENING).is_file():
        raise DialectError(f"{source.folder} was trained on whitened inputs and lacks {WHITENING}; copy it there.")
    return factor


def _facts(config: SaelensConfig, n: int, d: int, factor: float | None) -> dict[str, Fact]:
    facts = {
        "model": ask.model(config.model, config.facts.get("model_name")),
        "site": ask.site(config.site, config.facts.get("hook_name"), d),
    }
    if config.architecture in CHOOSES:
        whole = config.architecture not in BATCHES
        facts["k"] = Fact(config.k, "how many latents are active a token", "a whole number" if whole else "a number",
                          check=number(1 if whole else 1e-9, n, whole))  # fmt: skip
    if config.normalise == "expected_average_only_in":
        asked = f"by what inputs were multiplied in training (the file says only that there was a factor and has no {SCALER})"
        facts["scale"] = Fact(factor, asked, "sqrt(d) / mean norm of the activations, or 1 where it is in the weights",
                              check=number(1e-30, LARGEST))  # fmt: skip
    return facts | other_fields(config.fields, known(config.architecture), "SAELens 6.54")


def _notes(config: SaelensConfig) -> list[str]:
    notes = []
    if config.reads_heads:
        notes.append(
            "Reads the outputs of all heads of an attention layer, z, side by side: [heads * width of a head]."
        )
    if config.architecture in TRANSCODERS:
        output = describe(config.facts.get("hook_name_out") or "not told by the file", 80)
        notes.append(f"A transcoder: what it gives is not its input again but another activation, {output}.")
    trained, saved = config.facts.get("training_architecture"), config.architecture
    if trained in tuple(TENSORS) and trained != saved and not (saved == "jumprelu" and trained in BATCHES):
        notes.append(f"Trained as {trained!r} but saved as {saved!r}, whose codes these are.")
    if config.dtype in ("float16", "bfloat16"):
        notes.append(f"SAELens computes in {config.dtype}, as cfg.json says; here it is float32, so that codes differ by its "
                     "rounding.")  # fmt: skip
    return notes


def _settings(config: SaelensConfig, k: float | None, n: int, d: int, notes: list[str]) -> dict:
    trained_as = config.trained_as
    if trained_as in ("topk", "abstopk"):
        return {"k": config.whole("k", k)}
    if trained_as in BATCHES:
        k = config.number("k", config.k if k is None else k, least=1e-9)
        if k != max(1, round(k)):
            notes.append(f"Trained with k={k:g} active latents a token; our k is whole and plays no part in codes.")
        levels = {"prefixes": config.widths} if trained_as == "matryoshka_batchtopk" else {}
        return {"k": max(1, round(k)), **levels}
    if trained_as == "matching_pursuit":
        below = np.float32(config.number("residual_threshold", config.says.get("residual_threshold", 0.01)))
        tol = float(np.nextafter(below, np.float32(0)))  # theirs stops below the threshold, ours at it
        steps = config.whole("max_iterations", config.says.get("max_iterations")) or d
        repeats = not config.truth("stop_on_duplicate_support", True)
        return {"k": steps, "tol": tol, "repeats": repeats, "at_least": int(below > 0)}
    return {"k": n} if trained_as == "transcoder" else {}


def _as_ours(config: SaelensConfig, tensors: dict[str, Tensor], scale: float, notes: list[str]) -> dict[str, Tensor]:
    """By our names and for `(x - b_dec) W_enc + b_enc`, folded as SAELens folds when training ends."""
    made = dict(tensors)
    tuned = next((made.pop(name) for name in FINE_TUNED if name in made), None)
    subtracts = config.truth("apply_b_dec_to_input", config.architecture not in TRANSCODERS)
    if config.architecture == "matching_pursuit":
        return _pursuit(config, made, subtracts)
    if scale != 1:
        made = rescaled(made, scale)
        notes.append(f"Inputs were multiplied by {scale:.6g} in training, which is in the weights now.")
    if "b_gate" in made:
        made["b_enc"] = made.pop("b_gate")
    rescales = config.architecture in CHOOSES and config.truth("rescale_acts_by_decoder_norm", False)
    if rescales:
        made = codes_times(made, made["W_dec"].double().norm(dim=1).clamp_min(1e-8))
    _thresholds(made, scale if rescales else 1.0, notes)  # the norms in their units have changed with the scale
    if subtracts and config.architecture in TRANSCODERS:
        config.wrong("apply_b_dec_to_input", True, "false: the bias of a transcoder belongs to its output")
    if not subtracts and config.architecture != "transcoder":
        _subtract(made)
    if tuned is not None and not torch.allclose(tuned, torch.ones_like(tuned)):
        if not config.truth("finetuning_scaling_factor", False):
            config.wrong("finetuning_scaling_factor", False, "true, since the weights have factors that are not 1")
        made["W_dec"] = made["W_dec"] * tuned.double()[:, None]
    return made


def _thresholds(made: dict[str, Tensor], unit: float, notes: list[str]) -> None:
    """One a latent, linear; that of a batch is divided by `unit`."""
    if "log_threshold" in made:
        made["threshold"] = made.pop("log_threshold").exp()
    if "topk_threshold" in made:
        made["threshold"] = (made.pop("topk_threshold").double() / unit).expand(made["b_enc"].shape)
        if not made["threshold"][0] > 0:
            notes.append("Its threshold is 0, as before training; it works as a ReLU dictionary.")
    if "threshold" in made and (made["threshold"] < 0).any():
        notes.append("Some thresholds are negative; codes are cut at 0, as SAELens does outside training.")


def _subtract(made: dict[str, Tensor]) -> None:
    """Biases for an encoder that takes `b_dec` off, of one that does not."""
    read = read_by(made["W_enc"], made["b_dec"])
    made["b_enc"] = made["b_enc"] + read
    if "b_mag" in made:
        made["b_mag"] = made["b_mag"] + made["r_mag"].double().exp() * read


def _pursuit(config: SaelensConfig, made: dict[str, Tensor], subtracts: bool) -> dict[str, Tensor]:
    norms = made["W_dec"].double().norm(dim=1)
    if (norms - 1).abs().max() > UNIT:
        raise DialectError(
            f"{config.where.parent} is a matching pursuit over atoms of norm {norms.min():.3g} to {norms.max():.3g}; with "
            "norms other than 1 its steps are no projections, which no family here computes."
        )
    return made if subtracts else {**made, "b_dec": torch.zeros_like(made["b_dec"])}  # SAELens then uses it nowhere


def _whitened(source: Source, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights for raw inputs of an encoder that reads `(x - mean) matrix`."""
    side = Source(source.folder / WHITENING)
    d = tensors["b_dec"].shape[0]
    expected = {"mean": (d,), "matrix": (d, d), "inverse_matrix": (d, d)}
    if side.shapes != expected:
        raise DialectError(f"{side.weights} holds {side.shapes}; expected {expected}.")
    for name in expected:
        side.tensor(name)  # refuses NaN
    mean, matrix, inverse = (side.values[name].read().double() for name in expected)
    if (matrix @ inverse - torch.eye(d)).abs().max() > 1e-3:
        raise DialectError(f"{side.weights}: inverse_matrix is not the inverse of matrix; the file is damaged.")
    wide = {name: tensors[name].double() for name in ("W_enc", "W_dec", "b_dec")}
    return {**tensors, "W_enc": matrix @ wide["W_enc"], "W_dec": wide["W_dec"] @ inverse,
            "b_dec": wide["b_dec"] @ inverse + mean}  # fmt: skip


def _transform(config: SaelensConfig, d: int, scale: float) -> InputTransform:
    """What cannot be in the weights: what depends on the token, and a scale before a pursuit over unit atoms."""
    kinds = {"layer_norm": "layer_norm_unbiased", "constant_norm_rescale": "unit"}
    if config.architecture != "matching_pursuit" or scale == 1:
        return InputTransform(d, kinds.get(config.normalise, "none"))
    transform = InputTransform(d, "sqrt_d")
    transform.scale.fill_(scale)
    return transform
