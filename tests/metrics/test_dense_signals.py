"""The taxonomy of dense latents, with one planted latent a category (card 48, test 3)."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from vlsae.dictionaries.base import Codes
from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.metrics.dense_latents import ablate_subspace, dense_latents
from vlsae.metrics.dense_signals import (
    explain_dense,
    null_space_share,
    patch_positions,
    principal_directions,
    rank_correlation,
)
from vlsae.training import train
from vlsae.world import scenes

IMAGES, SIDE, D = 20, 8, 10
TOKENS = IMAGES * SIDE * SIDE


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _planted():
    """Tokens in which axis 0 carries the row, 1 the foreground, 2 a size that makes the norm, 3 to 6 noise."""
    position = patch_positions(SIDE, SIDE, IMAGES)
    foreground = torch.rand(TOKENS, generator=_generator(1)) < 0.3
    x = torch.zeros(TOKENS, D)
    x[:, 0] = 0.1 * (1 + position["row"])
    x[:, 1] = 0.1 * (1 + foreground + 0.5 * torch.rand(TOKENS, generator=_generator(2)))
    x[:, 2] = torch.exp(5 + 2 * torch.randn(TOKENS, generator=_generator(3)))  # registers: few tokens of a large norm
    x[:, 3:7] = 0.1 * torch.rand(TOKENS, 4, generator=_generator(4))
    sae = ReLUDictionary(D, 8)
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(D)[:8])
        sae.W_enc.copy_(torch.eye(D)[:, :8])
    return x, position, foreground, sae


def test_every_planted_latent_gets_its_category():
    """Ranks of the row, of the size and of the foreground are exact: |rho| and AUC are 1. Axis 7 is never active."""
    x, position, foreground, sae = _planted()
    projection = torch.randn(D, D, generator=_generator(5))
    projection[4] = 0.0  # no read-out sees axis 4
    gap = torch.eye(D)[5] + 0.1 * torch.eye(D)[9]
    for codes in (sae.encode(x), Codes.from_dense(sae.encode(x))):
        found = explain_dense(
            sae,
            codes,
            signals={**position, "norm": x.norm(dim=1)},
            truths={"foreground": foreground},
            directions={"gap": gap},
            projection=projection,
        )
        assert {latent.latent: latent.category for latent in found} == {
            0: "row", 1: "foreground", 2: "norm", 3: None, 4: "null space", 5: "gap", 6: None,
        }  # fmt: skip
        by_number = {latent.latent: latent for latent in found}
        assert by_number[0].scores["row"] == pytest.approx(1, abs=1e-9)
        assert by_number[1].scores["foreground"] == 1
        assert by_number[2].scores["norm"] == pytest.approx(
            1, abs=1e-3
        )  # the other axes exchange ranks of small tokens
        assert by_number[4].scores["null space"] == pytest.approx(1, abs=1e-9)
        assert all(latent.density == 1 for latent in found)


def test_the_densest_latent_of_the_tiny_clip_tells_things_from_ground(tiny):
    """Patches of 120 scenes, 512 TopK latents. Measured: seven are dense; the densest, on .31 of the patches, has an AUC of
    .94 for objects and a cosine of .85 with the first principal axis; two others follow the row (|rho| .55 and .57). None is
    half of a pair: the largest antipodality is .13.
    """
    shown = scenes(120, seed=51)
    x = tiny.tokens([scene.image for scene in shown])[:, 1:].flatten(0, 1)
    # of the 8 x 8 pixels of each patch, at least a quarter on an object
    covered = [s.masks.any(0).reshape(SIDE, 8, SIDE, 8).mean((1, 3)) > 0.25 for s in shown]
    options = {"n_latents": 512, "k": 8, "steps": 500, "batch_size": 512, "lr": 2e-3, "progress": False}
    sae = train(x, "topk", input_transform="centre_sqrt_d", **options)
    codes = sae.encode_sparse(x)
    found = explain_dense(
        sae,
        codes,
        signals=patch_positions(SIDE, SIDE, len(shown)),
        truths={"foreground": torch.from_numpy(np.stack(covered)).flatten()},
        directions={"first axis": principal_directions(x)[0]},
    )
    assert 1 <= len(found) < 0.05 * 512 and found[0].category == "foreground"
    assert found[0].scores["foreground"] > 0.85 and found[0].scores["first axis"] > 0.7
    assert dense_latents(sae, codes)["dense_antipodal"].value == 0


def test_what_no_readout_sees_can_be_taken_out():
    """Share 1 in the kernel of a projection and 0 in its row space; without the kernel the embedding is the same."""
    projection = torch.randn(D, 6, generator=_generator(6)).double()
    kernel = torch.linalg.svd(projection)[0][:, 6:].T
    read = torch.linalg.svd(projection)[0][:, :6].T
    mixed = 0.6 * kernel[:1] + 0.8 * read[:1]
    shares = null_space_share(torch.cat([3 * kernel, read, mixed]), projection)
    assert shares.tolist() == pytest.approx([1] * 4 + [0] * 6 + [0.36], abs=1e-9)
    # of the singular vectors in their order, the last five are the kernel and the last one read
    assert null_space_share(read, projection, bottom=5).tolist() == pytest.approx([0] * 5 + [1], abs=1e-9)
    x = torch.randn(30, D, generator=_generator(7)).double()
    left = ablate_subspace(x, kernel)
    assert torch.allclose(left @ projection, x @ projection, atol=1e-12)
    assert (x - left).norm() > 5  # of four in ten directions


def test_rank_correlation_is_scipys():
    z = torch.relu(torch.randn(200, 3, generator=_generator(8)))  # half of the values tie
    signals = torch.cat([z[:, :1].square(), torch.randn(200, 2, generator=_generator(9))], 1)
    found = rank_correlation(z, signals)
    for i in range(3):
        for j in range(3):
            assert found[i, j].item() == pytest.approx(spearmanr(z[:, i], signals[:, j]).statistic, abs=1e-12)
    assert rank_correlation(torch.ones(5, 1), torch.arange(5.0)[:, None]).isnan().all()


def test_principal_directions_and_positions():
    axis = F.normalize(torch.randn(D, generator=_generator(10)), dim=0)
    x = torch.randn(500, D, generator=_generator(11)) + 10 * torch.randn(500, 1, generator=_generator(12)) * axis + 7
    first = principal_directions(x, 2)
    assert abs(float(first[0] @ axis)) > 0.99 and abs(float(first[1] @ axis)) < 0.1
    found = patch_positions(3, 5, 2)
    assert found["row"].tolist()[:6] == [0, 0, 0, 0, 0, 1] and len(found["row"]) == 30
    assert found["radius"].argmin() == 7 and found["radius"][0].item() == pytest.approx(5**0.5)


def test_messages():
    sae = ReLUDictionary(4, 8)
    with pytest.raises(ValueError, match=r"shapes \{'row': \[3\]\}; expected \[5\], one value a token"):
        explain_dense(sae, torch.ones(5, 8), signals={"row": torch.ones(3)})
    with pytest.raises(ValueError, match="Atoms are .* with bottom=5; expected"):
        null_space_share(torch.eye(4), torch.eye(4), bottom=5)
    with pytest.raises(ValueError, match="5 codes and 3 signals"):
        rank_correlation(torch.ones(5, 1), torch.ones(3, 1))
