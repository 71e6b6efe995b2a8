"""Fits against the metrics of whole tokens, verdicts, and training on from where a dictionary stands."""

import pytest
import torch

from tests.adaptation.comparison.adaptations import NAMES, SITE, everything, shifted
from vlsae.adaptation.comparison.validity import Fit, fine_tune, fit_of, judge
from vlsae.metrics import reconstruction
from vlsae.training.loop import train


def test_against_the_metrics_of_all_tokens_at_once(tiny, labelled, coarse):
    """One pass in batches, of the adapted model, whose prompts do not count."""
    images, labels = labelled
    adapted = everything(tiny)
    found = fit_of(adapted, coarse, images, labels, NAMES, batch_size=5, progress=False)
    whole = reconstruction(coarse, adapted.tokens(images, SITE)[:, : len(tiny.token_roles)])
    assert found.ev_centred == pytest.approx(whole["ev_centred"].value, abs=1e-5)  # sums of squares in another order
    assert (found.l0, found.dead, found.n) == pytest.approx((whole["l0"].value, whole["dead"].value, 12), abs=1e-6)
    right = adapted.zero_shot(images, NAMES).argmax(1) == torch.tensor(labels)
    assert found.accuracy == found.error_kept == pytest.approx(float(right.float().mean()))
    with adapted.edit(SITE, lambda x: torch.cat([coarse(x[:, :-2]), x[:, -2:]], 1)):
        right = adapted.zero_shot(images, NAMES).argmax(1) == torch.tensor(labels)
    assert found.spliced == pytest.approx(float(right.float().mean()))


BASE = Fit(0.9, 8, 0, 0.8, 0.75, 0.8, 100)


@pytest.mark.parametrize(
    ("adapted", "fits", "words"),
    [
        (Fit(0.86, 8, 0, 0.9, 0.81, 0.9, 100), True, "It fits both models"),
        (Fit(0.84, 8, 0, 0.9, 0.85, 0.9, 100), False, "less of the adapted model's variance"),
        (Fit(0.9, 8, 0, 0.9, 0.79, 0.9, 100), False, "more accuracy than base"),
        (Fit(float("nan"), 8, 0, 0.9, 0.9, 0.9, 100), False, "less than 50%"),
    ],
)
def test_verdicts_at_their_thresholds(adapted, fits, words):
    found = judge(BASE, adapted)
    assert found.fits is fits and words in found.verdict and ("fine_tune" in found.verdict) is not fits


def test_a_dictionary_trained_on_learns_the_adapted_tokens(tiny, labelled):
    """From its present weights: hardly a step leaves them, many fit the moved tokens, and the given one stays."""
    images = labelled[0]
    x = tiny.tokens(images, SITE)
    sae = train(x, "topk", engine="torch", n_latents=64, k=16, steps=40, batch_size=128, lr=3e-3, warmup_steps=1,
                input_transform="centre", dead_policy="none", progress=False)  # fmt: skip
    sae.metadata["site"] = SITE
    adapted, before = shifted(tiny, 2.0), {name: value.clone() for name, value in sae.state_dict().items()}
    still = fine_tune(sae, adapted, images, steps=1, lr=1e-9, progress=False)
    assert all(torch.allclose(value, before[name], atol=1e-6) for name, value in still.state_dict().items())
    tuned = fine_tune(sae, [tiny, adapted], images, steps=60, progress=False)
    ev = {name: reconstruction(d, adapted.tokens(images, SITE))["ev_centred"].value for name, d in
          (("before", sae), ("after", tuned))}  # fmt: skip
    assert 1 - ev["after"] < 0.6 * (1 - ev["before"])
    assert tuned.metadata["fine_tuned_on"] == ["tiny", "tiny+shifted"] and tuned.metadata["site"] == SITE
    assert all(torch.equal(value, before[name]) for name, value in sae.state_dict().items())
    with pytest.raises(ValueError, match="Leave these out"):
        fine_tune(sae, tiny, images, n_latents=32, progress=False)


def test_a_dictionary_without_a_recipe_is_refused(tiny, labelled, coarse):
    with pytest.raises(ValueError, match="does not know its recipe"):
        fine_tune(coarse, tiny, labelled[0], progress=False)
