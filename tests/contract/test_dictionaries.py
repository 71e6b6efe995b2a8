"""What every registered dictionary must do."""

import inspect
import json

import pytest
import torch

from vlsae.dictionaries import DICTIONARIES, Codes, load_dictionary
from vlsae.dictionaries.checkpoint import CheckpointError

D, N = 12, 10


def make(family, seed=1):
    """Any family at one size; `k` is the only argument without a default that a family may have."""
    kind = DICTIONARIES.get(family)
    return kind(D, N, seed=seed, **({"k": 3} if "k" in inspect.signature(kind.__init__).parameters else {}))


def is_linear(sae):
    """Whether the encoder is `act((x - b_dec) W_enc + b_enc)`."""
    return "W_enc" in dict(sae.named_parameters()) and "b_enc" in dict(sae.named_parameters())


@pytest.fixture(params=list(DICTIONARIES))
def sae(request):
    made = make(request.param)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, size in (("b_dec", 1.0), ("b_enc", 0.1)):
            if name in dict(made.named_parameters()):
                getattr(made, name).copy_(size * torch.randn(getattr(made, name).shape, generator=generator))
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
    if sae.unit_atoms:
        assert torch.allclose(sae.atoms.norm(dim=1), torch.ones(N), atol=1e-5)
    if not sae.signed:
        assert (z >= 0).all()


def test_three_axes_and_empty_batches(sae, x):
    images = x[:6].reshape(2, 3, D)
    assert torch.allclose(sae.encode(images).flatten(0, 1), sae.encode(x[:6]), atol=1e-6)
    assert sae.encode(x[:0]).shape == (0, N)
    assert sae.decode(sae.encode(x[:0])).shape == (0, D)
    assert sae.encode_sparse(x[:0]).dense().shape == (0, N)


def test_sparse_and_dense_codes_agree(sae, x):
    codes = sae.encode_sparse(x)
    assert isinstance(codes, Codes)
    assert torch.allclose(codes.dense(), sae.encode(x), atol=1e-6)
    assert torch.equal(codes.dense() != 0, sae.encode(x) != 0)
    assert (codes.rows.diff() >= 0).all()
    assert torch.allclose(sae.decode(codes), sae.decode(sae.encode(x)), atol=1e-5)  # sums in another order


def test_views_of_sparse_codes(sae, x):
    """Columns in any order and twice, the peak of every latent, and the reconstruction, as from dense codes."""
    z, codes = sae.encode(x), sae.encode_sparse(x)
    assert torch.allclose(codes.columns([4, 0, 4]), z[:, [4, 0, 4]], atol=1e-6)
    assert torch.allclose(codes.peaks(), z.amax(0).clamp_min(0), atol=1e-6)
    images = x[:6].reshape(2, 3, D)
    assert torch.allclose(sae.reconstruct(images), sae(images), atol=1e-5)


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
    assert sae.encode(x.to(dtype)).dtype == torch.float32
    other = load_dictionary(sae.to(dtype).save(tmp_path))
    assert other.W_dec.dtype == dtype
    assert other.encode(x).dtype == dtype


def test_all_dead(sae, x):
    """A dictionary whose latents are all silent reconstructs its bias."""
    if not is_linear(sae):
        pytest.skip(f"{sae.family} has no linear encoder that could be silenced")
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.b_enc.fill_(0.0 if sae.signed else -5.0)
    assert (sae.encode(x) == 0).all()
    assert torch.equal(sae(x), sae.b_dec.expand_as(x))
    assert len(sae.encode_sparse(x).values) == 0


def test_same_seed_same_weights(sae):
    first, again, other = (make(sae.family, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_settings_make_the_same_dictionary(sae, x):
    """`settings` and the weights are all that a forward pass depends on."""
    again = type(sae)(D, N, **sae.settings)
    again.load_state_dict(sae.state_dict())
    assert torch.equal(again.encode(x), sae.encode(x))
    assert torch.equal(again(x), sae(x))


def test_a_training_pass_has_gradients(sae, x):
    """`trace` fits together, and the error reaches the atoms."""
    if not sae.trainable:
        pytest.skip(f"{sae.family} is not trained")
    sae.prepare(x)
    trace = sae.trace(x)
    assert trace.z.shape == (7, N)
    assert trace.xhat.shape == x.shape
    (trace.xhat - x).square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in sae.parameters())
    sae.constrain_gradient()
    sae.constrain()


def test_folding_a_scale(sae, x):
    """Codes and reconstruction of `x` after folding are those of `x * s` before, over s: exact up to rounding."""
    if not sae.homogeneous:
        with pytest.raises(ValueError, match="cannot be folded"):
            sae.fold_scale(4.0)
        return
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

    broken("{", "no whole JSON file")
    broken(json.dumps({**config, "metadata": {}}), "written by another program")
    facts = config["metadata"]["vlsae"]
    lacking = {k: v for k, v in facts.items() if k != "settings"}
    broken(json.dumps({**config, "metadata": {"vlsae": lacking}}), "misses \\['settings'\\]")
    broken(json.dumps({**config, "metadata": {"vlsae": {**facts, "schema": 9}}}), "schema 9; this version reads 1")
    broken(json.dumps({**config, "d_sae": 9}), "expected|do not fit")
    broken(json.dumps(config), "no whole safetensors file", weights[:-50])
    (folder / "sae_weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match="sae_weights.safetensors is missing"):
        load_dictionary(folder)
