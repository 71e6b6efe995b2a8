"""SAELens: checkpoints for inference, in training, and from before version 6; and Gemma Scope through its loader."""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.interop.make_fixtures import fresh, inputs, record

D, N = 8, 24
NAMES = {"model_name": "gpt2-small", "hook_name": "blocks.8.hook_resid_pre", "hook_head_index": None, "context_size": 128,
         "prepend_bos": True}  # fmt: skip
UNKNOWN = {"model": "unknown", "site": "unknown"}
EXTRA = {  # fields beyond sizes, by architecture
    "topk": {"k": 5},
    "abstopk": {"k": 5},
    "batchtopk": {"k": 4.0},
    "matryoshka_batchtopk": {"k": 4.0, "matryoshka_widths": [6, 14, N]},
    "matching_pursuit": {"residual_threshold": 1.5, "max_iterations": 12},
    "transcoder": {"d_out": D},
    "jumprelu_transcoder": {"d_out": D},
}
FAMILIES = {"standard": "relu", "topk": "topk", "abstopk": "abs_topk", "jumprelu": "jumprelu", "gated": "gated",
            "batchtopk": "batch_topk", "matryoshka_batchtopk": "nested_dictionary", "transcoder": "transcoder",
            "matching_pursuit": "matching_pursuit", "jumprelu_transcoder": "jumprelu"}  # fmt: skip


def small(architecture: str, training: bool = False, seed: int = 0, **fields):
    """An SAELens object with every bias away from zero, thresholds that cut, and decoder rows of unequal norms."""
    from sae_lens.registry import get_sae_class, get_sae_training_class
    from sae_lens.saes.sae import SAEMetadata

    kind, config = (get_sae_training_class if training else get_sae_class)(architecture)
    given = {**EXTRA.get(architecture, {}), **fields}
    if "transcoder" in architecture:
        given["apply_b_dec_to_input"] = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sae = kind(config(d_in=D, d_sae=N, metadata=SAEMetadata(**NAMES), **given))
    fill(sae, seed)
    return sae.eval()


@torch.no_grad()
def fill(sae, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    pursuit = not isinstance(sae.state_dict().get("W_enc"), Tensor)
    for name, value in sae.state_dict().items():
        drawn = torch.randn(value.shape, generator=generator)
        if name == "W_dec":
            lengths = 1.0 if pursuit else 0.5 + torch.rand(N, 1, generator=generator)
            drawn = lengths * torch.nn.functional.normalize(drawn, dim=1)
        elif name == "b_dec":
            drawn = 0.5 + 0.3 * drawn
        elif name in ("threshold", "topk_threshold"):
            drawn = 1 + 0.3 * drawn
        elif name != "W_enc":
            drawn = 0.3 * drawn
        value.copy_(drawn)


def codes(sae, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return sae.encode(x), sae(x)


def reopened(folder: Path, **kwargs):
    """A fresh object for inference."""
    from sae_lens import SAE

    return SAE.load_from_disk(folder, **kwargs).eval()


def finished(folder: Path, fold=lambda sae: None):
    """What SAELens itself makes of a checkpoint in training."""
    from sae_lens import TrainingSAE

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sae = TrainingSAE.load_from_disk(folder)
    fold(sae)
    with tempfile.TemporaryDirectory() as scratch:
        sae.save_inference_model(scratch)
        return reopened(scratch)


def make(root: Path) -> None:
    import sae_lens

    peer, x = f"sae-lens {sae_lens.__version__}", inputs(D, 12)

    def keep(folder: Path, sae, family: str, answers=(), dialect: str = "saelens") -> None:
        record(folder, x, *codes(sae, x), peer=peer, dialect=dialect, family=family, answers=dict(answers))

    for architecture in ("standard", "gated", "topk", "abstopk", "jumprelu", "matching_pursuit", "transcoder",
                         "jumprelu_transcoder"):  # fmt: skip
        folder = fresh(root, architecture)
        small(architecture).save_model(folder)
        keep(folder, reopened(folder), FAMILIES[architecture])
    variants = {
        "standard_raw": ("standard", {"apply_b_dec_to_input": False}),
        "gated_raw": ("gated", {"apply_b_dec_to_input": False}),
        "pursuit_raw": ("matching_pursuit", {"apply_b_dec_to_input": False, "residual_threshold": 0.0}),
        "topk_by_norms": ("topk", {"rescale_acts_by_decoder_norm": True}),
        "layer_norm": ("jumprelu", {"normalize_activations": "layer_norm"}),
        "unit": ("standard", {"normalize_activations": "constant_norm_rescale", "apply_b_dec_to_input": False}),
        "bfloat16": ("jumprelu", {"dtype": "bfloat16"}),
    }
    for name, (architecture, fields) in variants.items():
        folder = fresh(root, name)
        small(architecture, **fields).save_model(folder)
        keep(folder, reopened(folder, dtype="float32"), FAMILIES[architecture])
    _in_training(root, keep)
    _old(root, keep)
    _gemma(root, keep)


def _in_training(root: Path, keep) -> None:
    for architecture in ("topk", "batchtopk", "matryoshka_batchtopk"):
        folder = fresh(root, f"{architecture}_training")
        small(architecture, training=True).save_model(folder)
        keep(folder, finished(folder), FAMILIES[architecture])
    folder = fresh(root, "matryoshka_finished")
    small("matryoshka_batchtopk", training=True).save_inference_model(folder)
    keep(folder, reopened(folder), "nested_dictionary")
    for name, fields in (("batchtopk_scaled", {}), ("batchtopk_scaled_raw", {"rescale_acts_by_decoder_norm": False,
                                                                            "apply_b_dec_to_input": False})):  # fmt: skip
        folder = fresh(root, name)
        small("batchtopk", training=True, normalize_activations="expected_average_only_in", **fields).save_model(folder)
        scaler(folder, factor=0.7)
        keep(folder, finished(folder, lambda sae: sae.fold_activation_norm_scaling_factor(0.7)), "batch_topk")
    for name, subtracts in (("gated_whitened", True), ("gated_whitened_raw", False)):
        folder = fresh(root, name)
        small("gated", training=True, normalize_activations="covariance_whitening",
              apply_b_dec_to_input=subtracts).save_model(folder)  # fmt: skip
        parts = scaler(folder, whitens=True)
        keep(folder, finished(folder, lambda sae, parts=parts: sae.fold_activation_whitening(*parts)), "gated")


def scaler(folder: Path, factor: float | None = None, whitens: bool = False):
    """SAELens' files of what happens to activations before a training step, by its own class."""
    from sae_lens.training.activation_scaler import ActivationScaler

    made = ActivationScaler(scaling_factor=factor)
    if whitens:
        data = iter(lambda: inputs(D, 64, seed=5), None)
        made.estimate_whitening(D, data, n_batches_for_norm_estimate=2)
    made.save(str(folder / "activation_scaler.json"))
    return (made.whitening.mean, made.whitening.matrix, made.whitening.inverse_matrix) if whitens else None


def _old(root: Path, keep) -> None:
    """Configurations of versions 2 to 5, whose fields lie at the top level, and old names of thresholds."""
    old = {"model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre", "hook_point_layer": 8, "dtype": "torch.float32",
           "l1_coefficient": 8e-5, "context_size": 128, "d_in": D, "d_sae": N, "normalize_activations": "none",
           "finetuning_scaling_factor": False}  # fmt: skip
    llava = {
        "model_name": "llava-hf/llava-v1.6-mistral-7b-hf",
        "hook_name": "blocks.16.hook_resid_post",
        "hook_layer": 16,
    }
    cases = {
        "old_topk": ("topk", {**old, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}}),
        "old_scaling_factor": ("standard", old),
        "sae_v": ("standard", {**old, **llava, "architecture": "standard", "activation_fn_str": "relu",
                               "apply_b_dec_to_input": False, "normalize_activations": "expected_average_only_in"}),
    }  # fmt: skip
    for name, (architecture, config) in cases.items():
        folder = fresh(root, name)
        small(architecture).save_model(folder)
        (folder / "cfg.json").write_text(json.dumps(config))
        if name == "old_scaling_factor":
            weights = folder / "sae_weights.safetensors"
            save_file({**load_file(weights), "scaling_factor": torch.ones(N)}, weights)
        keep(
            folder, reopened(folder), FAMILIES[architecture], {**UNKNOWN, **({"scale": 1.0} if name == "sae_v" else {})}
        )
    folder = fresh(root, "old_jumprelu_training")
    small("jumprelu", training=True).save_model(folder)
    weights = load_file(folder / "sae_weights.safetensors")
    weights["log_threshold"] = weights.pop("threshold").log()
    save_file(weights, folder / "sae_weights.safetensors")
    keep(folder, finished(folder), "jumprelu")


def _gemma(root: Path, keep) -> None:
    from sae_lens.loading import pretrained_sae_loaders as loaders

    folder = fresh(root, "gemma_scope")
    sae = small("jumprelu", apply_b_dec_to_input=False)
    np.savez(folder / "params.npz", **{name: value.numpy() for name, value in sae.state_dict().items()})

    def converter(path, device, cfg_overrides):
        sizes = {"d_in": D, "d_sae": N}
        place = ("google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71")
        return loaders.gemma_2_sae_huggingface_loader(*place, device, cfg_overrides=sizes)[:2]

    download = loaders.hf_hub_download
    loaders.hf_hub_download = lambda **_: str(folder / "params.npz")
    try:
        keep(folder, reopened(folder, converter=converter), "jumprelu", UNKNOWN, "gemma_scope")
    finally:
        loaders.hf_hub_download = download
