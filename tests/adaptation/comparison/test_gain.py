"""Parts of a gain on adaptations of which it is known where they act."""

import numpy as np
import pytest
import torch

from tests.adaptation.comparison.adaptations import NAMES, SITE, everything, shifted, swapped
from vlsae.adaptation.adapted import AdaptedBackbone
from vlsae.adaptation.comparison.gain import DEFINITIONS, decompose_gain
from vlsae.adaptation.methods.coop import CoOp
from vlsae.world import concepts

WORDS = [word for word in concepts()["object"] if word not in NAMES]


def split(base, adapted, labelled, **options):
    options = {"site": SITE, "n_boot": 200, "progress": False} | options
    return decompose_gain(base, adapted, *labelled, NAMES, **options)


@pytest.mark.parametrize("kind", ["CoOp", "head"])
def test_changed_texts_and_heads_are_remapping_alone(tiny, labelled, kind):
    """Their tokens are base's, bit for bit: what swaps them changes no logit."""
    adapted = swapped(tiny) if kind == "head" else AdaptedBackbone(tiny, CoOp(tiny, n_ctx=2, seed=0))
    found = split(tiny, adapted, labelled)
    assert found.value("latents") == 0 and found.metrics["latents"].ci == (0, 0)
    assert found.value("remapping") == found.value("gain") != 0
    assert found.value("head_only") == found.value("adapted") != found.value("base")
    assert np.array_equal(found.correct["bb"], found.correct["ab"])


def test_tokens_changed_before_the_site_are_latents_alone(tiny, labelled):
    """Blocks after the site, texts and head are base's own."""
    found = split(tiny, shifted(tiny, 3.0), labelled)
    assert found.value("remapping") == 0 and found.metrics["remapping"].ci == (0, 0)
    assert found.value("latents") == found.value("gain") != 0
    assert found.value("head_only") == found.value("base")


def test_base_against_itself_gains_nothing(tiny, labelled, coarse):
    found = split(tiny, tiny, labelled, dictionary=coarse, shared=np.ones(256, bool))
    assert set(found.metrics) == set(DEFINITIONS)
    assert {found.value(name) for name in ("gain", "latents", "remapping")} == {0}
    assert len({found.value(name) for name in DEFINITIONS if name not in ("gain", "latents", "remapping")}) == 1


def test_against_models_run_one_by_one(tiny, labelled):
    """Each model with prompts of its own, and tokens of images written in by a plain edit."""
    images, labels = labelled
    adapted, names, n = everything(tiny), [*NAMES, *WORDS], len(tiny.token_roles)
    found = decompose_gain(tiny, adapted, *labelled, names, site=SITE, batch_size=5, n_boot=20, progress=False)
    models, truth = {"b": tiny, "a": adapted}, torch.tensor(labels)
    for tokens, later in ("aa", "ab", "ba", "bb"):
        x, model = models[tokens].tokens(images, SITE)[:, :n], models[later]
        with model.edit(SITE, lambda own, x=x: torch.cat([x, own[:, n:]], 1)):
            right = model.zero_shot(images, names).argmax(1) == truth
        assert np.array_equal(found.correct[tokens + later], right.numpy())
    assert len({tuple(found.correct[name]) for name in ("aa", "ab", "ba", "bb")}) >= 3
    assert found.value("latents") + found.value("remapping") == pytest.approx(found.value("gain"), abs=1e-12)


def test_latents_taken_from_base_in_the_adapted_model(tiny, labelled, coarse):
    """Against dense codes; with all latents shared, none is removed, and with none, all are."""
    images, labels = labelled
    adapted, shared = shifted(tiny, 0.5), np.arange(256) % 2 == 0
    found = split(tiny, adapted, labelled, dictionary=coarse, shared=shared, batch_size=5)
    x_b, x_a = tiny.tokens(images, SITE), adapted.tokens(images, SITE)
    z_b, z_a, m = coarse.encode(x_b), coarse.encode(x_a), torch.from_numpy(shared)
    wanted = {"shared_only": z_a * m, "base_codes": z_b, "base_amplitudes": z_b * m + z_a * ~m}
    for name, z in wanted.items():
        x = x_a + coarse.decode(z) - coarse.decode(z_a)
        with tiny.edit(SITE, lambda _, x=x: x):  # the later blocks of this adaptation are base's
            right = tiny.zero_shot(images, NAMES).argmax(1) == torch.tensor(labels)
        assert np.array_equal(found.correct[name], right.numpy()), name
    whole = split(tiny, adapted, labelled, dictionary=coarse, shared=np.ones((2, 256), bool))
    assert whole.value("shared_only") == whole.value("adapted")
    assert whole.value("base_amplitudes") == whole.value("base_codes")


def test_intervals_are_of_pairs(tiny, labelled):
    """The bootstrap's spread of a mean difference is that of the images' differences, not of two samples apart."""
    found = split(tiny, shifted(tiny, 3.0), labelled, n_boot=2000)
    gain, step = found.metrics["gain"], found.correct["aa"].astype(float) - found.correct["bb"]
    assert gain.ci == pytest.approx((step.mean() - 2 * step.std() / 12**0.5, 0.0), abs=1 / 12)
    assert found.metrics["latents"].ci == gain.ci


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site": None}, "Neither a site nor a dictionary"),
        ({"site": "vision.-2.mlp_out"}, "does not carry whole tokens"),
        ({"shared": np.ones(256, bool)}, "no dictionary"),
        ({"roles": ("prompt",)}, "name no token"),
        ({"n_boot": 3}, "at least 20 resamples"),
    ],
)
def test_mistakes_are_explained(tiny, labelled, options, message):
    with pytest.raises(ValueError, match=message):
        split(tiny, tiny, labelled, **options)
    with pytest.raises(ValueError, match="give one number from 0 to 1"):
        split(tiny, tiny, (labelled[0], [0, 2] * 6))
