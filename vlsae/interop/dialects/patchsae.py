"""PatchSAE (Lim et al. 2025) and the ViT dictionaries of HugoFry that it descends from."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any, ClassVar

import torch

from vlsae.atomic import replacing
from vlsae.backbones.site import Site
from vlsae.dictionaries.base import Dictionary
from vlsae.interop.answers import Answers, model, site
from vlsae.interop.dialect import DIALECTS, Dialect, DialectError
from vlsae.interop.fields import describe, ignored_note, other_fields
from vlsae.interop.source import Source
from vlsae.interop.weights import build, precision_note
from vlsae.pickles import Global, Inert

TENSORS = {"W_enc", "b_enc", "W_dec", "b_dec"}
GATED = {"r_mag", "b_mag"}
CLIP = re.compile(r"(?:openai/)*(clip-vit-(?:base|large)-patch\d+(?:-336)?)")  # their trainer adds `openai/` once more
OURS = re.compile(r"(?:open_clip|hf):\S+")
KEPT = ("model_name", "module_name", "block_layer", "class_token", "dataset_path", "image_width", "image_height",
        "expansion_factor", "l1_coefficient", "lr", "lr_scheduler_name", "lr_warm_up_steps", "batch_size",
        "total_training_tokens", "use_ghost_grads", "mse_cls_coefficient", "b_dec_init_method", "seed", "dtype",
        "custom_clip_ckpt_path")  # fmt: skip
KNOWN = {*KEPT, "d_in", "d_sae", "gated_sae", "sae_type",
         # of its versions and HugoFry's, and no part of a forward pass
         "cached_activations_path", "checkpoint_path", "create_dataloader", "dead_feature_estimation_method",
         "dead_feature_threshold", "dead_feature_window", "debug_numerics", "device", "feature_reinit_scale",
         "feature_sampling_method", "feature_sampling_window", "from_pretrained_path", "ghost_grad_exp_clamp_max", "image_key",
         "label_key", "log_to_wandb", "max_batch_size_for_vit_forward_pass", "n_batches_in_store", "n_checkpoints", "norm_eps",
         "resample_batches", "run_name", "store_size", "use_cached_activations", "wandb_entity", "wandb_log_frequency",
         "wandb_project",
         # of a fork with other kinds, for which a flag ending in `_sae` is set
         "activation_vectors_per_example", "experiment_metadata", "jumprelu_bandwidth", "jumprelu_init_threshold",
         "jumprelu_l0_coefficient", "jumprelu_sae", "matryoshka_levels", "matryoshka_min_group_fraction", "matryoshka_sae",
         "topk_aux_coefficient", "topk_aux_k", "topk_k", "topk_sae", "training_examples"}  # fmt: skip
TOKENS = {
    True: "It was trained on the class token alone (class_token=True).",
    False: "It was trained on all tokens of an image, the class token among them.",
}
NO_GATE = (
    "PatchSAE's own code leaves the gated forward pass out; this is that of arXiv 2404.16014, as its forks have it."
)


@DIALECTS.register("patchsae")
class PatchSAE(Dialect):
    """`torch.save({"cfg" or "config": a configuration, "state_dict": ...})`; `b_dec` is taken off, inputs are as they come."""

    name = "patchsae"
    project = "PatchSAE"
    classes: ClassVar = (r"(?:\w+\.){0,3}sae_training\.config\.(?:ViTSAERunnerConfig|Config)",)

    def sniff(self, source: Source) -> bool:
        config = _config(source)
        named = {"block_layer", "module_name"} <= set(config)
        return named and source.has(*(f"state_dict.{name}" for name in TENSORS))

    def read(self, source: Source, answers: Answers) -> Dictionary:
        self.require(source)
        config = _config(source)
        family = _family(source, config)
        _check_sizes(source, config, source.shapes["state_dict.W_dec"])
        told = answers.settle(
            model=model(_model(config), config.get("custom_clip_ckpt_path") or config.get("model_name")),
            site=site(_site(config), f"{config.get('module_name')} of block {config.get('block_layer')} of "
                      f"{config.get('model_name')}", *source.shapes["state_dict.b_dec"][:1]),
            **other_fields(config, KNOWN, "PatchSAE"),
        )  # fmt: skip
        dictionary = build(source, family, {name: source.tensor(f"state_dict.{name}") for name in _names(source)})
        notes = ignored_note(config, KNOWN) + precision_note(_dtype(config), self.project)
        notes += [TOKENS[bool(config["class_token"])]] if "class_token" in config else []
        notes += [NO_GATE] if family == "gated" else []
        kept = {name: _plain(config[name]) for name in KEPT if name in config}
        dictionary.metadata = {"model": told.model, "site": told.site, **kept, "notes": notes}
        return dictionary

    def write(self, dictionary: Dictionary, folder: Path) -> None:
        if dictionary.family != "relu":
            raise DialectError(
                f"PatchSAE computes ReLU codes only, and this dictionary is of the family {dictionary.family!r}; save it in "
                "vlsae's own format, or convert it for SAELens."
            )
        folded = copy.deepcopy(dictionary)
        try:
            folded.fold_transform()
        except ValueError as error:
            raise DialectError(f"PatchSAE has no input transform: {error}") from error
        tensors = {name: folded.state_dict()[name].detach().cpu().float().contiguous() for name in sorted(TENSORS)}
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "out.pt") as partial:
            torch.save({"cfg": _written(folded), "state_dict": tensors}, partial)


def _config(source: Source) -> dict[str, Any]:
    """The configuration as a dictionary, whether it was one or an object; empty where there is none."""
    content = source.content
    found = (content.get("cfg") or content.get("config")) if isinstance(content, dict) else None
    if isinstance(found, Inert):
        return found.state
    return found if isinstance(found, dict) else {}


def _names(source: Source) -> set[str]:
    return {name.removeprefix("state_dict.") for name in source.shapes if name.startswith("state_dict.")}


def _family(source: Source, config: dict[str, Any]) -> str:
    """relu or gated; forks have other kinds under the same names of tensors, which would be read wrongly."""
    names, gated = _names(source), bool(config.get("gated_sae"))
    other = [name for name, on in config.items()
             if isinstance(name, str) and name.endswith("_sae") and name not in ("d_sae", "gated_sae") and on]  # fmt: skip
    kind = config.get("sae_type", "standard")
    if other or kind not in ("standard", "gated" if gated else "standard"):
        named = describe(", ".join(other) or repr(kind))
        raise DialectError(
            f"{source.weights} is of a variant that PatchSAE itself does not have ({named}); only standard and gated "
            "dictionaries are read. Convert it with the code that wrote it, say to SAELens' format."
        )
    if names != (TENSORS | GATED if gated else TENSORS):
        raise DialectError(
            f"{source.weights} says gated_sae={gated} and has the tensors {', '.join(sorted(names))}; expected "
            f"{', '.join(sorted(TENSORS | GATED if gated else TENSORS))}."
        )
    return "gated" if gated else "relu"


def _check_sizes(source: Source, config: dict[str, Any], W_dec: tuple[int, ...]) -> None:
    if len(W_dec) != 2 or not all(W_dec):
        raise DialectError(f"{source.weights}: the decoder has shape {W_dec}; expected a matrix.")
    n, d = W_dec
    for name, value in {"d_in": d, "d_sae": n, "expansion_factor": n / d}.items():
        said = config.get(name)
        if said is not None and (isinstance(said, bool) or said != value):
            raise DialectError(
                f"{source.weights}: its configuration says {name}={describe(said, 40)}, and its decoder of shape {W_dec} says "
                f"{value:g}; the file is inconsistent, download it again."
            )


def _model(config: dict[str, Any]) -> str | None:
    """Where the name is one of OpenAI's models, or ours, and no other weights were loaded into it."""
    name = config.get("model_name")
    if not isinstance(name, str) or config.get("custom_clip_ckpt_path"):
        return None
    match = CLIP.fullmatch(name)
    return f"hf:openai/{match[1]}" if match else name if OURS.fullmatch(name) else None


def _site(config: dict[str, Any]) -> str | None:
    """`module_name="resid"` is the output of block `block_layer` of the vision tower, counted as Python does."""
    block, name = config.get("block_layer"), config.get("model_name")
    if config.get("module_name") != "resid" or type(block) is not int or abs(block) > 999 or not isinstance(name, str):
        return None
    certain = OURS.fullmatch(name) or "clip-vit" in name.lower()
    return f"vision.{block}.resid_post" if certain else None


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, Global) else value if isinstance(value, (str, int, float)) else None


def _dtype(config: dict[str, Any]) -> str:
    """The type in which it computes, by its name."""
    return describe(_plain(config.get("dtype")) or "float32", 20).removeprefix("torch.")


def _written(dictionary: Dictionary) -> dict[str, Any]:
    """The fields that PatchSAE's loader and scripts read; a dictionary serves them as well as their own class."""
    where, name = dictionary.metadata.get("site"), dictionary.metadata.get("model")
    place = Site.parse(where) if where else None
    if place is None or (place.tower, place.stream) != ("vision", "resid_post") or not name:
        raise DialectError(
            f"PatchSAE reads outputs of blocks of a vision tower (vision.BLOCK.resid_post) of a known model; this dictionary "
            f"reads {where} of {name}. Set dictionary.metadata['site'] and ['model'] where you know better."
        )
    facts = {key: dictionary.metadata[key] for key in KEPT if key in dictionary.metadata}
    n, d = dictionary.n_latents, dictionary.d
    return {
        "class_token": None,
        "l1_coefficient": 0.0,
        "mse_cls_coefficient": 1.0,
        **{key: value for key, value in facts.items() if key not in ("expansion_factor", "custom_clip_ckpt_path")},
        **({"expansion_factor": n // d} if n % d == 0 else {}),
        "model_name": name.removeprefix("hf:"),
        "module_name": "resid",
        "block_layer": place.block,
        "d_in": d,
        "d_sae": n,
        "dtype": torch.float32,
        "device": "cpu",
        "gated_sae": False,
        "use_ghost_grads": False,
    }
