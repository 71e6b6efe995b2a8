"""ViT-Prisma: a state dict beside `config.json`, or one file with a pickled configuration."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor

from vlsae.dictionaries.base import Dictionary
from vlsae.dictionaries.transform import InputTransform
from vlsae.interop.answers import Answers, Fact, model, number, site, truth
from vlsae.interop.dialect import DIALECTS, Dialect, DialectError
from vlsae.interop.fields import describe, ignored_note, other_fields
from vlsae.interop.prisma_config import (
    KEPT,
    KNOWN,
    configuration,
    dtype_of,
    flat,
    hook_of,
    of_sae_lens_2,
    options_of,
    our_model,
    our_site,
    pickled,
    text,
)
from vlsae.interop.source import Source
from vlsae.interop.weights import bias_of_raw_input, build, precision_note, rescaled

STANDARD = {"W_enc", "b_enc", "W_dec", "b_dec"}
TENSORS = {
    "standard": STANDARD,
    "gated": STANDARD | {"b_gate", "b_mag", "r_mag"},  # its b_enc is stored and not used
    "transcoder": STANDARD | {"b_dec_out"},
}
TRANSFORMS = {"layer_norm": "layer_norm_unbiased", "constant_norm_rescale": "unit", "none": "none"}
NORMALIZED = ("layer_norm", "constant_norm_rescale")
ACTIVATIONS = ("relu", "topk")
TOKENS = {"cls_token_only": "the class token", "cls_token": "the class token", "use_patches_only": "patches"}
CENTRED = (
    "ViT-Prisma may have centred what the model's blocks write (center_writing_weights, long its default): it then read "
    "activations whose coordinates had another mean, which these codes depend on. vlsae doctor shows whether they fit."
)


@DIALECTS.register("prisma")
class Prisma(Dialect):
    """`.pt` with `{"cfg", "state_dict"}`, or a state dict and the `config.json` of `VisionModelSAERunnerConfig`.

    A pickled configuration and one beside it must agree: the project's own loader takes the first, and the second for files
    of the hub.
    """

    name = "prisma"
    project = "ViT-Prisma"
    classes = (r"vit_prisma\.(?:\w+\.){0,3}\w*[cC]onfig\w*\.\w+", r"vit_prisma\.utils\.constants\.Evaluation")

    def sniff(self, source: Source) -> bool:
        if source.weights.suffix != ".pt":
            return False
        if pickled(source) is not None:
            return "state_dict.W_enc" in source.shapes
        if of_sae_lens_2(source):
            return True
        config = source.json("config.json")
        ours = config.get("model_class_name") == "HookedViT" or "layer_subtype" in config
        return ours and "hook_point_layer" in config and any(source.has(f"{p}W_enc") for p in ("", "state_dict."))

    def read(self, source: Source, answers: Answers) -> Dictionary:
        if of_sae_lens_2(source):
            raise DialectError(
                f"{source.weights} has the parts 'config' and 'autoencoder', as SAELens 2 wrote them before ViT-Prisma had a "
                "format of its own; it does not say what happens to activations first. Open it with ViT-Prisma's "
                "SparseAutoencoder.load_from_pretrained_legacy_saelens_v2, look whether normalize_activations is what it was "
                "trained with, and save it by save_model(...'.pt')."
            )
        config = configuration(source)
        kind, names = _kind(source, config)
        width = source.shapes[names["W_enc"]][0] if source.shapes[names["W_enc"]] else 0
        said = answers.settle(**_facts(source, config, answers, width))
        _check_computable(source, config, kind, said)
        tensors = {name: source.tensor(stored) for name, stored in names.items()}
        _check_shapes(source, config, kind, tensors)
        dictionary = _build(source, kind, said, tensors)
        kept = {name: config.get(name) for name in KEPT}
        dictionary.metadata |= {name: value for name, value in kept.items() if isinstance(value, (str, int, float))}
        notes = _notes(config, kind, said)
        dictionary.metadata |= {"model": said.model, "site": said.site, "notes": notes}
        return dictionary


def _kind(source: Source, config: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Which module it is, from its tensors, and where these are."""
    prefix = "state_dict." if "state_dict.W_enc" in source.shapes else ""
    held = {name.removeprefix(prefix) for name in source.shapes if name.startswith(prefix)}
    flags = {name: config.get(name, False) for name in ("is_transcoder", "transcoder_with_skip_connection")}
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise DialectError(
                f"{source.weights}: {name}={describe(value)} of its configuration must be true or false."
            )
    if all(flags.values()) or "W_skip" in held:
        raise DialectError(
            f"{source.weights} is a transcoder with a skip connection, which adds its input times a matrix to its output; "
            "no family of ours does."
        )
    fitting = [
        kind for kind, needed in TENSORS.items() if held == needed or (kind == "gated" and held | {"b_enc"} == needed)
    ]
    if not fitting:
        raise DialectError(
            f"{source.weights} holds {', '.join(sorted(held)[:12]) or 'no tensors'}; expected those of "
            f"{' or '.join(f'{kind}: {sorted(needed)}' for kind, needed in TENSORS.items())}."
        )
    kind = fitting[0]
    stated = "transcoder" if flags["is_transcoder"] else config.get("architecture", kind)
    stated = "standard" if stated == "vanilla" else stated  # which its trainer takes for the same
    if stated != kind:
        raise DialectError(
            f"{source.weights} is said to be of the architecture {describe(stated, 40)!r}, but its tensors are those of "
            f"{kind!r}; expected one of {', '.join(TENSORS)} and its own tensors."
        )
    return kind, {name: prefix + name for name in held}


def _facts(source: Source, config: dict[str, Any], answers: Answers, width: int) -> dict[str, Fact]:
    name, hook, options = config.get("model_name"), hook_of(config), options_of(source, config)
    own = "model" in answers.given or config.get("model_path") or config.get("vit_model_cfg")
    activation, normalize = text(source, config, "activation_fn_str"), text(source, config, "normalize_activations")
    facts = {
        "model": model(None if own else our_model(name), says=config.get("model_path") or name),
        "site": site(our_site(config, hook), says=hook, width=width),
        "activation_fn_str": Fact(activation, "the activation", " or ".join(ACTIVATIONS)),
        "normalize_activations": Fact(normalize, "what happens to activations first", ", ".join(TRANSFORMS)),
    }
    if (activation or answers.given.get("activation_fn_str")) == "topk":
        facts["k"] = Fact(options.get("k"), "active latents a token", "a whole number", check=number(1, whole=True))
    if "architecture" not in config and (normalize or answers.given.get("normalize_activations")) in NORMALIZED:
        facts["normalized_encoder"] = Fact(
            None, "whether its encoder reads normalised activations; versions of ViT-Prisma that had no field `architecture` "
            "normalised them for the output alone", "True, as its loader computes today, or False, which no family of ours "
            "does", check=truth,
        )  # fmt: skip
    return facts | other_fields(flat(config, options), KNOWN, "ViT-Prisma 2.0")


def _check_computable(source: Source, config: dict[str, Any], kind: str, said: SimpleNamespace) -> None:
    after = options_of(source, config).get("postact_fn", "relu")
    computable = {"activation_fn_str": ACTIVATIONS[:1] if kind == "gated" else ACTIVATIONS,
                  "normalize_activations": tuple(TRANSFORMS)}  # fmt: skip
    for field, possible in computable.items():
        value = getattr(said, field)
        if value not in possible:
            raise DialectError(
                f"{source.weights}: {field}={describe(value)!r} with the architecture {kind!r} is nothing that our families "
                f"compute; expected {' or '.join(possible)}."
            )
    if said.activation_fn_str == "topk" and after != "relu":
        raise DialectError(
            f"{source.weights}: postact_fn={describe(after)} leaves negative codes among the k largest, which no family of "
            "ours has; expected relu."
        )
    if not getattr(said, "normalized_encoder", True):
        raise DialectError(
            f"{source.weights}: an encoder that reads activations as they are, with a decoder behind "
            f"{said.normalize_activations}, is nothing that our families compute; train it again with a newer ViT-Prisma."
        )
    if type(getattr(said, "k", 1)) is not int:
        raise DialectError(f"{source.weights}: k={describe(repr(said.k))} must be a whole number.")


def _check_shapes(source: Source, config: dict[str, Any], kind: str, tensors: dict[str, Tensor]) -> None:
    if tensors["W_enc"].ndim != 2:
        raise DialectError(f"{source.weights}: W_enc has shape {list(tensors['W_enc'].shape)}; expected a matrix.")
    d, n = tensors["W_enc"].shape
    expected = {"W_enc": [d, n], "W_dec": [n, d], "b_dec": [d], "b_dec_out": [d]}
    wrong = [f"{name} is {list(t.shape)}, expected {expected.get(name, [n])}"
             for name, t in tensors.items() if list(t.shape) != expected.get(name, [n])]  # fmt: skip
    sizes = {"d_in": d, "d_sae": n} | ({"d_out": d} if kind == "transcoder" else {})
    if d and not isinstance(config.get("expansion_factor"), list):  # the list of a sweep
        sizes["expansion_factor"] = n / d
    wrong += [f"its configuration says {name}={describe(config[name], 40)}, expected {size}"
              for name, size in sizes.items() if config.get(name) not in (None, size)]  # fmt: skip
    if wrong:
        raise DialectError(f"{source.weights}: {'; '.join(wrong)}. Input and output must be of one width.")


def _build(source: Source, kind: str, said: SimpleNamespace, tensors: dict[str, Tensor]) -> Dictionary:
    d, n = tensors["W_enc"].shape
    family, settings = ("topk", {"k": said.k}) if said.activation_fn_str == "topk" else ("relu", {})
    if kind == "gated":
        family = "gated"
        tensors["b_enc"] = tensors.pop("b_gate")
    if kind == "transcoder":
        family, settings = "transcoder", settings or {"k": n}  # ReLU keeps of the n largest what it keeps of all
        tensors["b_enc"] = bias_of_raw_input(tensors["W_enc"], tensors["b_enc"], -tensors["b_dec"])
        tensors["b_dec"] = tensors.pop("b_dec_out")
    if said.normalize_activations == "constant_norm_rescale":  # to norm sqrt(d), ours to norm 1
        doubles = {name: tensor.double() for name, tensor in tensors.items()}
        tensors = {name: tensor.float() for name, tensor in rescaled(doubles, d**0.5).items()}
    return build(source, family, tensors, settings, InputTransform(d, TRANSFORMS[said.normalize_activations]))


def _notes(config: dict[str, Any], kind: str, said: SimpleNamespace) -> list[str]:
    notes = ignored_note(flat(config, config.get("activation_fn_kwargs") or {}), KNOWN)
    if kind == "transcoder":
        out = f"blocks.{config.get('out_hook_point_layer')}.{config.get('layer_out_subtype')}"
        notes.append(f"A transcoder: its output stands for {describe(out)}, not for what it reads.")
    notes += [f"It was trained on {tokens} alone." for name, tokens in TOKENS.items() if config.get(name) is True]
    if said.normalize_activations != "layer_norm":  # which removes every token's mean itself
        notes.append(CENTRED)
    return notes + precision_note(dtype_of(config), Prisma.project)
