"""What ViT-Prisma's `VisionModelSAERunnerConfig` says, of every version, pickled or as JSON."""

from __future__ import annotations

import re
from typing import Any

from vlsae.interop.dialect import DialectError
from vlsae.interop.fields import describe
from vlsae.interop.source import Source
from vlsae.pickles import Global, Inert

STREAMS = {f"hook_{name}": name for name in ("resid_pre", "resid_post", "attn_out", "mlp_out")}
KEPT = ("model_name", "model_class_name", "hook_point", "hook_point_layer", "layer_subtype", "hook_point_head_index",
        "context_size", "image_size", "cls_token_only", "use_patches_only", "architecture", "activation_fn_str",
        "normalize_activations", "dataset_name", "dataset_path", "l1_coefficient", "lp_norm", "lr", "expansion_factor",
        "initialization_method", "b_dec_init_method", "num_epochs", "total_training_images", "total_training_tokens",
        "train_batch_size", "seed", "is_transcoder", "out_hook_point_layer", "layer_out_subtype")  # fmt: skip
DECISIVE = ("model_name", "hook_point_layer", "layer_subtype", "hook_point_head_index", "architecture", "is_transcoder",
            "activation_fn_str", "activation_fn_kwargs", "normalize_activations", "d_in", "d_sae")  # fmt: skip
KNOWN = {*KEPT, "activation_fn_kwargs", "activation_fn_kwargs.k", "activation_fn_kwargs.postact_fn", "d_in", "d_sae", "d_out",
         "dtype", "_dtype", "cls_token", "transcoder_with_skip_connection", "vit_model_cfg", "model_path",
         # of any version, and none of them part of a forward pass
         "_custom_hook_point", "_device", "cached_activations_path", "checkpoint_path", "dataset_size", "dataset_train_path",
         "dataset_val_path", "dead_feature_threshold", "dead_feature_window", "device", "dist_url", "distributed",
         "feature_sampling_window", "from_pretrained_path", "gpu", "is_training", "local_store_batch_size",
         "local_train_batch_size", "log_to_wandb", "lr_scheduler_name", "lr_warm_up_steps", "max_grad_norm",
         "min_explained_variance", "min_l0", "n_batches_in_buffer", "n_checkpoints", "n_validation_runs", "num_patch",
         "num_workers", "post_training_eval", "prisma_vit_cfg", "rank", "return_out_only", "run_name", "sae_path",
         "sparsity_loss", "store_batch_size", "tokens_per_buffer", "total_training_steps", "training_eval", "unique_hash",
         "use_cached_activations", "use_ghost_grads", "verbose", "wandb_entity", "wandb_log_frequency", "wandb_project",
         "world_size"}  # fmt: skip


def pickled(source: Source) -> dict[str, Any] | None:
    """The configuration in the weight file; None where there is none."""
    content = source.content
    config = content.get("cfg") if isinstance(content, dict) else None
    return config.state if isinstance(config, Inert) and config.name.startswith("vit_prisma.") else None


def of_sae_lens_2(source: Source) -> bool:
    """Whether the file has the parts that SAELens 2 wrote."""
    content = source.content
    return isinstance(content, dict) and "config" in content and "autoencoder.state_dict.W_enc" in source.shapes


def configuration(source: Source) -> dict[str, Any]:
    """The configuration in the weight file, else the one beside it.

    Raises:
        DialectError: where both are there and say different things about codes, model or site.
    """
    inside, beside = pickled(source), source.json("config.json")
    if inside is None:
        return beside
    told_twice = (
        [name for name in DECISIVE if name in inside and name in beside] if "hook_point_layer" in beside else []
    )
    differing = [name for name in told_twice if _plain(inside[name]) != _plain(beside[name])]
    if differing:
        said = (f"{name}={describe(inside[name])} and {describe(beside[name])}" for name in differing)
        raise DialectError(
            f"{source.weights} and config.json beside it disagree: {', '.join(said)}. Move the one that is wrong away."
        )
    return inside


def _plain(value: Any) -> Any:
    """A value as all versions would say it: sweeps have lists of one, and no settings are none."""
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    return None if value == {} else value


def options_of(source: Source, config: dict[str, Any]) -> dict[str, Any]:
    """Settings of the activation; old configurations have none for a ReLU."""
    options = config.get("activation_fn_kwargs")
    if not isinstance(options, dict | None):
        raise DialectError(f"{source.weights}: activation_fn_kwargs={describe(options)} must be settings by name.")
    return options or {}


def flat(config: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """All fields, also those of the activation, by dotted names."""
    return config | {f"activation_fn_kwargs.{name}": value for name, value in options.items()}


def text(source: Source, config: dict[str, Any], field: str) -> str | None:
    """A field's value; None where it is missing, as in configurations older than the field."""
    if field not in config:
        return None
    value = "none" if config[field] is None else config[field]
    if not isinstance(value, str):
        raise DialectError(f"{source.weights}: {field}={describe(value)} of its configuration must be text.")
    return value


def hook_of(config: dict[str, Any]) -> str | None:
    """The hook's name, or both where two fields disagree."""
    layer, stream = config.get("hook_point_layer"), config.get("layer_subtype")
    composed = f"blocks.{_plain(layer)}.{stream}" if stream is not None else None
    stated = config.get("hook_point")
    head = config.get("hook_point_head_index")
    names = dict.fromkeys(str(name) for name in (stated, composed) if name is not None)
    return " and ".join(names) + (f", head {head}" if head is not None else "") if names else None


def our_site(config: dict[str, Any], hook: str | None) -> str | None:
    """The hook by our name; None where it is of no site, or of no vision tower."""
    found = re.fullmatch(r"blocks\.(\d{1,4})\.(\w+)", hook or "")
    if found is None or config.get("model_class_name") != "HookedViT" or found[2] not in STREAMS:
        return None
    return f"vision.{int(found[1])}.{STREAMS[found[2]]}"


def our_model(name: Any) -> str | None:
    """Prisma's `open-clip:` is followed by a repository on the hub; a bare repository of a CLIP is transformers'."""
    if not isinstance(name, str):
        return None
    if name.startswith("open-clip:"):
        return _of_repository(name.removeprefix("open-clip:"))
    is_clip = re.fullmatch(r"[\w.-]+/[\w.-]*clip[\w.-]*", name, re.IGNORECASE) and not name.startswith("timm/")
    return f"hf:{name}" if is_clip else None


def _of_repository(repository: str) -> str | None:
    """The one name under which open_clip knows the weights of a repository; None where there are several."""
    import open_clip  # takes seconds, and few files need it

    found = [
        f"open_clip:{arch}/{tag}"
        for arch, tag in open_clip.list_pretrained()
        if ((open_clip.get_pretrained_cfg(arch, tag) or {}).get("hf_hub") or "").rstrip("/") == repository
    ]
    return found[0] if len(found) == 1 else None


def dtype_of(config: dict[str, Any]) -> str:
    """The type in which it computes, by its name; JSON and versions say it differently."""
    said = config.get("dtype") or config.get("_dtype")
    said = said.name if isinstance(said, Global) else said.get("value") if isinstance(said, dict) else said
    return describe(said or "float32", 20).removeprefix("torch.")
