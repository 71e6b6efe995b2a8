"""PatchSAE, MSAE and VL-SAE by their own classes, from the folders in VLSAE_PEER_PATCHSAE, _MSAE and _VLSAE, both ways."""

import os

import pytest
import torch

from tests.interop.make_fixtures import inputs
from tests.interop.peers import msae, patchsae, vl_sae
from vlsae.dictionaries.nested_sparsity import NestedSparsityMatryoshka
from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.dictionaries.topk import TopKDictionary
from vlsae.dictionaries.transform import InputTransform
from vlsae.dictionaries.vl_sae import VLSAE
from vlsae.interop.dialect import DIALECTS
from vlsae.interop.load import load_dictionary

pytestmark = pytest.mark.peers
UNKNOWN = {"model": "unknown", "site": "unknown"}
D, N, K = 8, 32, 6


def here(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(name not in os.environ, reason=f"{name} names no checkout")


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert torch.equal(ours != 0, theirs != 0) and bool((theirs != 0).any())
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6 * float(theirs.abs().max()))


def drawn(dictionary, kind: str = "none"):
    generator = torch.Generator().manual_seed(5)
    for part in dictionary.requires_grad_(False).parameters():
        part.copy_(torch.randn(part.shape, generator=generator))
    dictionary.transform = InputTransform.fit(inputs(D, 64, seed=1), kind)
    dictionary.metadata = {"model": "hf:openai/clip-vit-base-patch16", "site": "vision.-2.resid_post"}
    return dictionary


@here("VLSAE_PEER_PATCHSAE")
@pytest.mark.parametrize("gated", [False, True])
def test_patchsae_writes(tmp_path, gated):
    peer, x = patchsae.source(), inputs(D, 200)
    theirs = patchsae.drawn(peer, gated_sae=gated).eval()
    theirs.save_model(str(tmp_path / "a.pt"))
    xhat, codes, _ = theirs(x)
    ours = load_dictionary(tmp_path)
    close(ours.encode(x), codes)
    close(ours(x), xhat)


@here("VLSAE_PEER_PATCHSAE")
@pytest.mark.parametrize("kind", ["none", "centre_sqrt_d"])
def test_patchsae_reads(tmp_path, kind):
    """By their loader as it is, without a word about classes: a folded transform leaves codes in the inputs' units."""
    ours, x = drawn(ReLUDictionary(D, N), kind), inputs(D, 200)
    DIALECTS.get("patchsae")().write(ours, tmp_path)
    theirs, config = patchsae.source().tasks.load_sae(str(tmp_path / "out.pt"), "cpu")
    ours.fold_transform()
    xhat, codes, _ = theirs(x)
    close(ours.encode(x), codes)
    close(ours(x), xhat)
    assert (config.block_layer, config.module_name, config.d_sae) == (-2, "resid", N)
    assert float(theirs.train()(x[None])[2]["mse_loss"]) > 0  # training reads further fields


@here("VLSAE_PEER_MSAE")
@pytest.mark.parametrize("case", ["relu", "relu_tied", "topk", "msae_uw", "batch_topk"])
def test_msae_writes(tmp_path, case):
    sae, x = msae.source(), inputs(D, 200)
    activation, tied, name, family, answers = msae.CASES[case]
    theirs = sae.SAE(msae.saved(sae, tmp_path, activation, tied, name)).eval()
    kept, full = theirs.encode(x)
    codes = kept if family == "topk" else full
    ours = load_dictionary(tmp_path, **UNKNOWN, **answers)
    close(ours.encode(x), codes)
    close(ours(x), theirs.decode(codes))


@here("VLSAE_PEER_MSAE")
@pytest.mark.parametrize("k", [4, 12])
def test_an_msae_is_cut_as_theirs(tmp_path, k):
    """`encode(x, topk)` of theirs is `encode_at(x, k)` of ours."""
    sae, x = msae.source(), inputs(D, 200)
    theirs = sae.SAE(msae.saved(sae, tmp_path, "TopKReLU_4", False, "TopKReLU_4_UW")).eval()
    close(load_dictionary(tmp_path, **UNKNOWN).encode_at(x, k), theirs.encode(x, topk=k)[1])


@here("VLSAE_PEER_MSAE")
@pytest.mark.parametrize("kind", ["none", "centre_sqrt_d"])
@pytest.mark.parametrize("family", ["relu", "topk", "nested_sparsity"])
def test_msae_reads(tmp_path, family, kind):
    made = {
        "relu": ReLUDictionary(D, N),
        "topk": TopKDictionary(D, N, k=K),
        "nested_sparsity": NestedSparsityMatryoshka(D, N),
    }
    ours, x = drawn(made[family], kind), inputs(D, 200)
    DIALECTS.get("msae")().write(ours, tmp_path)
    theirs = msae.source().SAE(str(next(tmp_path.iterdir()))).eval()
    codes = theirs.encode(x)[0 if family == "topk" else 1]
    close(ours.encode(x), codes)
    close(ours(x), theirs.decode(codes))


@here("VLSAE_PEER_VLSAE")
def test_vl_sae_writes(tmp_path):
    theirs, x = vl_sae.drawn(vl_sae.source().VL_SAE), inputs(D, 200)
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    image, text, codes, _ = theirs(x, x)
    ours = load_dictionary(tmp_path, k=K, **UNKNOWN)
    close(ours.encode(x), codes)
    close(ours(x), image)
    close(ours.decode(ours.encode(x), modality="text"), text)


@here("VLSAE_PEER_VLSAE")
def test_vl_sae_reads(tmp_path):
    ours, x = drawn(VLSAE(D, N, k=K)), inputs(D, 200)
    DIALECTS.get("vl_sae")().write(ours, tmp_path)
    theirs = vl_sae.source().VL_SAE(D, N, topk=K)
    theirs.load_state_dict(torch.load(next(tmp_path.iterdir())))
    image, text, codes, _ = theirs(x, x)
    close(ours.encode(x), codes)
    close(ours(x), image)
    close(ours.decode(ours.encode(x), modality="text"), text)
