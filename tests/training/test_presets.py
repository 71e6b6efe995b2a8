"""Published recipes: each resolves to its numbers and trains a few steps."""

import pytest
import torch

from vlsae.activations import TwoModalities
from vlsae.training import PRESETS, train
from vlsae.training.recipe import fit_to_data, make_config

X = 3 * torch.randn(600, 16, generator=torch.Generator().manual_seed(0)) + 1
SMALL = {"steps": 4, "batch_size": 128, "progress": False}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains(name, tmp_path):
    own = {"n_latents": 64} if not PRESETS[name].get("expansion") else {}
    if name in ("msae_topk", "ra_topk"):
        own["k"] = 16
    if name == "topk":
        own["aux_k"] = 8
    if name.startswith("vlsae"):
        own = {"k": 16}
    data = TwoModalities(X, X + 1) if name.startswith("vlsae") else X
    sae = train(data, preset=name, out=tmp_path, **own, **SMALL)
    assert sae.family == PRESETS[name]["family"]
    assert sae.metadata["recipe"]["loss_scale"] == PRESETS[name].get("loss_scale", "sum")
    assert torch.isfinite(sae(X)).all()
    assert (tmp_path / "train.jsonl").exists()


def test_numbers_that_are_published():
    """anchors.md 11.3: PatchSAE, MSAE, sae-for-vlm, SAE-V, RA-SAE, USAE and Gao et al., number for number."""

    def recipe(name, d=768):
        return fit_to_data(make_config(None, name, {}), d)

    patch = recipe("patchsae")
    assert (patch.n_latents, patch.l1, patch.lr, patch.warmup_steps) == (49_152, 8e-5, 4e-4, 500)
    assert patch.dead_policy == "ghost"
    msae = recipe("msae_rw")
    assert (msae.n_latents, msae.lr, msae.clip_gradient, msae.adam_eps) == (6144, 1e-4, 1.0, 6.25e-10)
    assert (msae.input_transform, msae.option("nesting", "")) == ("centre_sqrt_d", "reverse")
    assert recipe("msae_relu").lr == 5e-5
    assert recipe("vlm_btk").lr == pytest.approx(2e-4 / (6144 / 2**14) ** 0.5)
    assert (recipe("saev").expansion, recipe("saev").l1, recipe("saev").input_transform) == (16, 5.0, "sqrt_d")
    assert (recipe("ra_topk").n_latents, recipe("ra_topk").input_transform) == (3840, "standardise")
    vlsae = recipe("vlsae", 512)
    assert (vlsae.n_latents, vlsae.k, vlsae.lr, vlsae.batch_size) == (4096, 256, 1e-3, 512)
    assert (vlsae.schedule, vlsae.objectives, vlsae.weight_decay) == ("cosine", "", 0)
    assert (vlsae.warmup_steps / vlsae.steps, 1 - vlsae.decay) == pytest.approx((0.2, 0.2), rel=1e-3)
    assert recipe("vlsae_paired").objectives == "reconstruction,cross_reconstruction"
    usae = recipe("usae")
    assert (usae.family, usae.n_latents, usae.k, usae.batch_size) == ("batch_norm_topk", 6144, 32, 32 * 196)
    assert (usae.lr, usae.weight_decay, usae.clip_gradient, usae.option("unselected", 0)) == (3e-4, 1e-5, 1.0, 0.1)
    assert (usae.loss_scale, usae.input_transform, usae.schedule) == ("absolute", "scalar", "cosine")
    assert usae.steps == 30 * usae.warmup_steps
    assert (recipe("topk").lr, recipe("topk").batch_size, recipe("topk").aux_k) == (1e-4, 131_072, 512)


def test_an_option_of_the_user_overrides_the_preset():
    assert make_config(None, "msae_rw", {"lr": 0.5}).lr == 0.5
    assert make_config("topk", "vlm_btk", {}).family == "topk"
    with pytest.raises(ValueError, match="Unknown preset 'best'"):
        make_config(None, "best", {})
