"""What every registered dictionary must do."""

import json

import pytest
import torch

from vlsae.dictionaries import DICTIONARIES, Codes, load_dictionary
from vlsae.dictionaries.checkpoint import CheckpointError

SETTINGS = {"topk": {"k": 3}, "projection": {"k": 3}}
D, N = 12, 10


@pytest.fixture(params=list(DICTIONARIES))
def sae(request):
    made = DICTIONARIES.get(request.param)(D, N, seed=1, **SETTINGS.get(request.param, {}))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(2)
        made.b_dec.copy_(torch.randn(D, generator=generator))
        made.b_enc.copy_(0.1 * torch.randn(N, generator=generator))
    return made


@pytest.fixture
def x():
    return torch.randn(7, D, generator=torch.Generator().manual_seed(0))


def test_shapes(sae, x):
    z = sae.encode(x)
    assert z.shape == (7, N)
    assert sae.decode(z).shape == x.shape
    assert torch.equal(sae(x), sae.decode(z))
    assert sae.atoms.shape == (N, D)
    assert torch.allclose(sae.atoms.norm(dim=1), torch.ones(N), atol=1e-5)


def test_three_axes_and_empty_batches(sae, x):
    images = x[:6].reshape(2, 3, D)
    assert torch.allclose(sae.encode(images).flatten(0, 1), sae.encode(x[:6]), atol=1e-6)
    assert sae.encode(x[:0]).shape == (0, N)
    assert sae.decode(sae.encode(x[:0])).shape == (0, D)
    assert sae.encode_sparse(x[:0]).dense().shape == (0, N)


def test_sparse_and_dense_codes_agree(sae, x):
    codes = sae.encode_sparse(x)
    assert isinstance(codes, Codes)
    assert torch.equal(codes.dense(), sae.encode(x))
    assert (codes.rows.diff() >= 0).all()
    assert torch.equal(sae.decode(codes), sae.decode(sae.encode(x)))


def test_save_and_load_are_bit_equal(sae, x, tmp_path):
    sae.metadata = {"site": "vision.4.resid_post", "model": "tiny", "recipe": {"lr": 0.1}}
    other = load_dictionary(sae.save(tmp_path / "d"))
    assert type(other) is type(sae)
    assert torch.equal(other.encode(x), sae.encode(x))
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), sae.state_dict().values(), strict=True))
    assert other.metadata == sae.metadata
    assert other.settings == sae.settings


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(sae, x, tmp_path, dtype):
    assert torch.allclose(sae.encode(x.to(dtype)), sae.encode(x.to(dtype).float()), atol=1e-6)
    other = load_dictionary(sae.to(dtype).save(tmp_path))
    assert other.W_dec.dtype == dtype
    assert other.encode(x).dtype == dtype


def test_all_dead(sae, x):
    """A dictionary whose latents are all silent reconstructs its bias."""
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.b_enc.fill_(0.0 if sae.family == "projection" else -5.0)
    assert (sae.encode(x) == 0).all()
    assert torch.equal(sae(x), sae.b_dec.expand_as(x))
    assert len(sae.encode_sparse(x).values) == 0


def test_same_seed_same_weights(sae):
    again = DICTIONARIES.get(sae.family)(D, N, seed=1, **sae.settings)
    assert torch.equal(again.W_enc, DICTIONARIES.get(sae.family)(D, N, seed=1, **sae.settings).W_enc)
    assert not torch.equal(again.W_enc, DICTIONARIES.get(sae.family)(D, N, seed=2, **sae.settings).W_enc)


def test_folding_a_scale(sae, x):
    """Codes and reconstruction of `x` after folding are those of `x * s` before, over s: exact up to rounding."""
    z, xhat = sae.encode(x * 4.0), sae(x * 4.0)
    sae.fold_scale(4.0)
    assert torch.allclose(sae.encode(x), z / 4, atol=1e-6)
    assert torch.allclose(sae(x), xhat / 4, atol=1e-6)


def test_bad_input_is_refused(sae, x):
    with pytest.raises(ValueError, match=r"shape \(7, 5\); this dictionary reads \[..., 12\]"):
        sae.encode(x[:, :5])
    with pytest.raises(ValueError, match="NaN or infinite"):
        sae.encode(x * float("nan"))
    with pytest.raises(ValueError, match=r"this dictionary decodes \[..., 10\]"):
        sae.decode(torch.zeros(2, 11))


def test_damaged_and_foreign_checkpoints(sae, tmp_path):
    folder = sae.save(tmp_path / "d")
    config = json.loads((folder / "cfg.json").read_text())
    weights = (folder / "sae_weights.safetensors").read_bytes()

    def broken(text, message, data=weights):
        (folder / "cfg.json").write_text(text)
        (folder / "sae_weights.safetensors").write_bytes(data)
        with pytest.raises(CheckpointError, match=message):
            load_dictionary(folder)

    broken("{", "is damaged")
    broken(json.dumps({**config, "metadata": {}}), "written by another program")
    facts = config["metadata"]["vlsae"]
    lacking = {k: v for k, v in facts.items() if k != "settings"}
    broken(json.dumps({**config, "metadata": {"vlsae": lacking}}), "misses \\['settings'\\]")
    broken(json.dumps({**config, "metadata": {"vlsae": {**facts, "schema": 9}}}), "schema 9; this version reads 1")
    broken(json.dumps({**config, "d_sae": 9}), "expected|do not fit")
    broken(json.dumps(config), "damaged or truncated", weights[:-50])
    (folder / "sae_weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match="sae_weights.safetensors is missing"):
        load_dictionary(folder)
