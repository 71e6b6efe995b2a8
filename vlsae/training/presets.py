"""Published recipes by name, number for number; no torch here.

`n_latents: 0` takes `expansion` times the width of the data; `lr: 0` takes 2e-4 / sqrt(n_latents / 2^14). Steps are the
published numbers of epochs or tokens over the batch size, on the data sets the papers used.
"""

from __future__ import annotations

from typing import Any

# MSAE (Zaigrajew et al. 2025), released code: 30 epochs over 2.906 M CC3M embeddings
_MSAE: dict[str, Any] = {
    "n_latents": 0,
    "expansion": 8,
    "loss_scale": "normalised",
    "input_transform": "centre_sqrt_d",
    "b_dec_init": "zeros",
    "batch_size": 4096,
    "steps": 21_285,
    "warmup_steps": 0,
    "decay": 0.2,
    "clip_gradient": 1.0,
    "adam_eps": 6.25e-10,
    "dead_policy": "none",
}
# sae-for-vlm (Pach et al. 2025): BatchTopK, flat and with nested prefixes
_VLM: dict[str, Any] = {
    "n_latents": 0,
    "expansion": 8,
    "k": 20,
    "lr": 0.0,
    "warmup_steps": 1000,
    "batch_size": 4096,
    "steps": 110_000,
    "aux_coefficient": 0.03,
    "dead_policy": "auxk",
    "dead_after_tokens": 10_000_000,
}

# VL-SAE (Shen et al. 2025), released code: 10 epochs over 80 % of CC3M in batches of 512 pairs, two of them warm-up. Steps
# are for the 2.906 M pairs that MSAE counts. The released loss is a mean over d, this one a sum, which Adam does not see;
# the code keeps the best validation loss, this the last step.
_VLSAE: dict[str, Any] = {
    "family": "vl_sae",
    "n_latents": 0,
    "expansion": 8,
    "k": 256,
    "lr": 1e-3,
    "warmup_steps": 9081,
    "schedule": "cosine",
    "decay": 0.8,
    "batch_size": 512,
    "steps": 45_406,
    "b_dec_init": "zeros",
    "dead_policy": "none",
}

PRESETS: dict[str, dict[str, Any]] = {
    # PatchSAE's shipped script: 128 images x 197 tokens a step, ghost gradients after 64 silent steps
    "patchsae": {
        "family": "relu",
        "n_latents": 49_152,
        "l1": 8e-5,
        "loss_scale": "patchsae",
        "lr": 4e-4,
        "warmup_steps": 500,
        "decay": 0.0,
        "batch_size": 25_216,
        "steps": 20_480,
        "dead_policy": "ghost",
        "dead_after_tokens": 64 * 25_216,
    },
    # Gao et al. 2024: variance-scaled loss, AuxK 1/32, dead after 10 M tokens
    "topk": {
        "family": "topk",
        "k": 32,
        "n_latents": 32_768,
        "loss_scale": "variance",
        "lr": 1e-4,
        "decay": 0.0,
        "batch_size": 131_072,
        "dead_after_tokens": 10_000_000,
        "aux_k": 512,
        "adam_eps": 6.25e-10,
    },
    "msae_uw": {**_MSAE, "family": "nested_sparsity", "lr": 1e-4, "options": {"nesting": "uniform"}},
    "msae_rw": {**_MSAE, "family": "nested_sparsity", "lr": 1e-4, "options": {"nesting": "reverse"}},
    "msae_relu": {**_MSAE, "family": "relu", "lr": 5e-5, "l1": 0.003, "options": {"l1_relative": True}},
    "msae_topk": {**_MSAE, "family": "topk", "lr": 5e-4, "k": 64},
    "vlm_btk": {**_VLM, "family": "batch_topk"},
    "vlm_mbtk": {**_VLM, "family": "nested_dictionary"},
    "vlsae": _VLSAE,
    # ours: the same with the pairing used; "matched_codes" beside it makes codes more alike, and reconstructions worse
    "vlsae_paired": {**_VLSAE, "objectives": "reconstruction,cross_reconstruction", "options": {"cross": 1.0}},
    # SAE-V (Lou et al. 2025): SAELens' recipe, 164 M tokens, penalty risen over the first 5 %
    "saev": {
        "family": "relu",
        "n_latents": 0,
        "expansion": 16,
        "l1": 5.0,
        "input_transform": "sqrt_d",
        "lr": 5e-5,
        "warmup_steps": 0,
        "decay": 0.2,
        "batch_size": 8192,
        "steps": 20_000,
        "dead_policy": "none",
        "options": {"penalty_warmup_steps": 1000},
    },
    # RA-SAE (Fel et al. 2025), overcomplete's usual settings; k is a tenth of 5 x 768 latents
    "ra_topk": {
        "family": "archetypal",
        "n_latents": 0,
        "expansion": 5,
        "k": 384,
        "loss_scale": "sum",
        "input_transform": "standardise",
        "b_dec_init": "zeros",
        "lr": 5e-4,
        "schedule": "cosine",
        "decay": 1.0,
        "clip_gradient": 1.0,
        "batch_size": 1024,
        "dead_policy": "reanimation",
        "dead_after_tokens": 1024,
        "options": {"reanimation": 1e-3},
    },
    # USAE (Thasarathan et al. 2025), released code, for `train_universal`: 30 epochs of 1,281,167 images, 32 a step with
    # 196 tokens each, one epoch of warm-up; the published rate ends at 1e-6, this one at 0
    "usae": {
        "family": "batch_norm_topk",
        "n_latents": 6144,
        "k": 32,
        "loss_scale": "absolute",
        "input_transform": "scalar",
        "b_dec_init": "none",
        "lr": 3e-4,
        "weight_decay": 1e-5,
        "schedule": "cosine",
        "warmup_steps": 40_036,
        "decay": 29 / 30,
        "clip_gradient": 1.0,
        "batch_size": 32 * 196,
        "steps": 30 * 40_036,
        "objectives": "reconstruction,unselected",
        "dead_policy": "none",
        "options": {"unselected": 0.1},
    },
}
