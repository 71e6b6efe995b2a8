"""Packed weights change the order of sums and nothing else, and step aside where they must."""

import copy
from copy import deepcopy

import pytest
import torch
from torch import nn

from vlsae import onednn
from vlsae.backbones import load_model
from vlsae.backbones.packed import pack

pytestmark = pytest.mark.skipif(not onednn.is_available(), reason="this torch has no oneDNN")


def _pair(net: nn.Module) -> tuple[nn.Module, nn.Module]:
    other = copy.deepcopy(net)
    pack(other)
    return net, other


def test_gradients_changed_weights_and_other_types_go_the_layers_own_way():
    torch.manual_seed(0)
    own, other = _pair(nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64)))
    x = torch.randn(50, 64)
    with torch.no_grad():
        assert torch.allclose(other(x), own(x), atol=1e-6)
    assert torch.equal(other(x), own(x))  # gradients are wanted, for the weights
    other(x).square().sum().backward()
    own(x).square().sum().backward()
    assert torch.equal(other[0].weight.grad, own[0].weight.grad)
    with torch.no_grad():
        for net in (own, other):
            net[0].weight *= 2
        assert torch.allclose(other(x), own(x), atol=1e-6)
        assert torch.equal(other.double()(x.double()), own.double()(x.double()))
    assert set(other.state_dict()) == set(own.state_dict())


@pytest.mark.parametrize("options", [{"batch_first": True}, {}, {"batch_first": True, "add_bias_kv": True}], ids=str)
@torch.no_grad()
def test_self_attention_and_all_other_kinds(options):
    torch.manual_seed(0)
    own, other = _pair(nn.MultiheadAttention(64, 4, **options).eval())
    x, y, mask = torch.randn(5, 5, 64), torch.randn(5, 5, 64), torch.ones(5, 5, dtype=torch.bool).triu(1)
    assert torch.allclose(other(x, x, x, need_weights=False)[0], own(x, x, x, need_weights=False)[0], atol=1e-6)
    assert torch.equal(other(x, x, x)[1], own(x, x, x)[1])
    assert torch.equal(other(x, y, y, need_weights=False)[0], own(x, y, y, need_weights=False)[0])
    masked = {"need_weights": False, "attn_mask": mask}
    assert torch.equal(other(x, x, x, **masked)[0], own(x, x, x, **masked)[0])


def test_without_onednn_the_error_says_what_to_use(monkeypatch):
    monkeypatch.setattr(onednn, "is_available", lambda: False)
    with pytest.raises(ValueError, match="tiny is on cpu, and this torch has none. Use 'float32' or 'bfloat16'"):
        load_model("tiny", precision="float32_onednn")


@torch.no_grad()
def test_copies_and_replaced_weights_are_used():
    layer, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(3, 8)
    pack(layer)
    before, twin = layer(x), deepcopy(layer)
    twin[0].weight.zero_()
    assert torch.equal(twin(x), twin[0].bias.expand(3, 8)) and torch.equal(layer(x), before)
    layer[0].weight.data = torch.zeros(8, 8)
    layer[0].bias = nn.Parameter(torch.ones(8))
    assert torch.equal(layer(x), torch.ones(3, 8))
    layer[0].weight = nn.Parameter(torch.eye(8))
    assert torch.equal(layer(x), x + 1)
