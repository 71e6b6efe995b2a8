"""One small data set and dictionary for the tests of masks, gains and fits."""

import pytest

from tests.adaptation.comparison.adaptations import SITE, animals
from vlsae.dictionaries.topk import TopKDictionary


@pytest.fixture(scope="package")
def labelled(tiny):
    """Pixels of twelve scenes, half cats and half balls, and their classes."""
    drawn, classes = animals(12)
    return tiny.pixels(drawn), classes


@pytest.fixture(scope="package")
def coarse(tiny, labelled):
    """A dictionary around the mean of the base's tokens that misses much of them."""
    sae = TopKDictionary(192, 256, k=8, seed=1).requires_grad_(False)
    sae.b_dec.copy_(tiny.tokens(labelled[0], SITE).flatten(0, 1).mean(0))
    sae.metadata["site"] = SITE
    return sae
