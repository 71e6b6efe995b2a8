"""Methods that change weights, embeddings or the head: LoRA, adapters, caches, probes and fine-tuning."""

import pytest
import torch

from tests.backbones.models import BUILDERS
from vlsae.adaptation.adapted import AdaptedBackbone
from vlsae.adaptation.lora import SCALINGS
from vlsae.adaptation.methods.lora import LoRAAdaptation
from vlsae.world import scenes

TEXTS = ["cat", "red ball"]


@pytest.fixture(scope="module")
def drawn():
    return scenes(4, seed=4)


def randomise(module, std=0.3):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))


def dense_copy(name, adaptation):
    """The model built again, its weights changed by hand to W + s B A."""
    model = BUILDERS[name]()
    options = adaptation.settings
    s = options["alpha"] / options["rank"] ** 0.5
    with torch.no_grad():
        for tower in ("vision", "text"):
            for i, block in enumerate(model.blocks(tower)):
                attention = getattr(block, "attn", None) or block.self_attn
                linears = [m for m in block.mlp.modules() if isinstance(m, torch.nn.Linear)]
                rows = getattr(attention, "in_proj_weight", None)
                rows = attention.qkv.weight if hasattr(attention, "qkv") else rows
                for j, target in enumerate("qkv"):
                    own = getattr(attention, f"{target}_proj", None)
                    weight = own.weight if own is not None else rows[j * len(rows) // 3 : (j + 1) * len(rows) // 3]
                    update = adaptation.updates[f"{tower}_{i}_{target}"]
                    weight += s * update.B @ update.A
                out = getattr(attention, "out_proj", None) or attention.proj
                for weight, target in ((out.weight, "out"), *((m.weight, f"mlp_{j}") for j, m in enumerate(linears))):
                    update = adaptation.updates[f"{tower}_{i}_{target}"]
                    weight += s * update.B @ update.A
    return model


@pytest.mark.parametrize("name", ["tiny", "open_clip ViT/16", "timm SigLIP", "hf CLIP", "hf SigLIP"])
def test_lora_is_the_identity_at_first_and_then_the_dense_update(name, drawn):
    model = BUILDERS[name]()
    images, texts = model.encode_image(drawn), model.encode_text(TEXTS)
    adaptation = LoRAAdaptation(model, targets=("q", "k", "v", "out", "mlp"), rank=3, alpha=1.5)
    adapted = AdaptedBackbone(model, adaptation)
    assert torch.equal(adapted.encode_image(drawn), images)
    assert torch.equal(adapted.encode_text(TEXTS), texts)
    randomise(adaptation, 0.1)
    dense = dense_copy(name, adaptation)
    assert not torch.allclose(adapted.encode_image(drawn), images, atol=1e-3)
    for changed, expected in ((adapted.encode_image(drawn), dense.encode_image(drawn)),
                              (adapted.encode_text(TEXTS), dense.encode_text(TEXTS))):  # fmt: skip
        assert torch.allclose(changed, expected, atol=1e-6)
    before = adapted.encode_image(drawn)
    adaptation.updates.merge(adapted.base)
    assert not any(hasattr(m, "parametrizations") for m in adapted.base.model.modules())
    assert torch.allclose(adapted.encode_image(drawn), dense.encode_image(drawn), atol=1e-6)
    adaptation.updates.unmerge(adapted.base)
    assert torch.equal(adapted.encode_image(drawn), before)
    assert torch.equal(model.encode_image(drawn), images)
    assert torch.equal(model.encode_text(TEXTS), texts)


def test_scalings_by_hand():
    """alpha 8, rank 4: a half of it for sqrt(4), a quarter for 4."""
    assert {name: s(8.0, 4) for name, s in SCALINGS.items()} == {"clip_lora": 4.0, "rslora": 4.0, "peft": 2.0}
