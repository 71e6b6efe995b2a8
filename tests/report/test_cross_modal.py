"""Cards of a latent's images and sentences: which rows they show, in which order, and what is in bold."""

import pytest
import torch
from PIL import Image

from vlsae.report.cross_modal import cross_modal_cards, top_rows

TEXTS = ["a red fox & an ox", "foxes", "a fox", "nothing"]
Z = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [0.0, 0.0]])


def _opened(seen):
    return lambda i: seen.append(i) or Image.new("RGB", (8, 8), "white")


def test_only_active_rows_best_first():
    assert top_rows(Z, 0, 10) == [2, 1, 0]
    assert top_rows(Z, 0, 2) == [2, 1]
    assert top_rows(Z, 1, 2) == []


def test_a_card_shows_its_rows_and_marks_whole_words():
    seen = []
    html = cross_modal_cards(Z, Z, [0], _opened(seen), TEXTS, ["#0 <fox>"], marked=["fox"])
    assert seen == [2, 1, 0]
    assert "<li>a <b>fox</b></li><li>foxes</li><li>a red <b>fox</b> &amp; an ox</li>" in html
    assert "#0 &lt;fox&gt;" in html
    assert "nothing" not in html


def test_a_pair_of_latents_takes_images_of_the_first_and_sentences_of_the_second():
    seen = []
    html = cross_modal_cards(Z, Z, [(0, 1)], _opened(seen), TEXTS, ["two"])
    assert len(seen) == 3
    assert "no sentence" in html


def test_sentences_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="4 codes and 3 sentences"):
        cross_modal_cards(Z, Z, [0], _opened([]), TEXTS[:3], ["#0"])
