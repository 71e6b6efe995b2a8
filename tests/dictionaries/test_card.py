"""Model cards: read back by huggingface_hub and a Markdown renderer, they say what the dictionary is."""

import html
import re
from dataclasses import asdict

import pytest
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from tests.dictionaries.planted import FAMILIES, planted
from vlsae.dictionaries.card import ORIGIN, model_card
from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.dictionaries.topk import TopKDictionary


def table(card, heading):
    """The rows under a heading, as a reader of the rendered card sees them."""
    page = MarkdownIt("commonmark").enable("table").render(card.split("\n---\n", 1)[1])
    section = page.partition(f"<h2>{heading}</h2>")[2].partition("<h2>")[0]
    cells = [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", section, re.DOTALL)]
    return dict(zip(cells[::2], cells[1::2], strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_card_says_what_the_dictionary_is(family):
    sae = FAMILIES[family]()
    text = model_card(sae, "me/sae", license="mit")
    assert ModelCard(text).data.to_dict() == {
        "library_name": "vlsae",
        "license": "mit",
        "base_model": "openai/clip-vit-base-patch16",
        "tags": ["sparse-autoencoder", "interpretability", "clip", family],
    }
    rows = table(text, "Facts")
    assert rows["Family"] == family
    assert (rows["Width of the activations (d)"], rows["Latents"]) == ("6", "10")
    assert {k: v for k, v in rows.items() if k.startswith("Setting: ")} == {
        f"Setting: {name}": str(value) for name, value in sae.settings.items()
    }
    assert rows["Input transform"] == sae.transform.kind
    assert (rows["Model"], rows["Site"], rows["Tokens seen in training"]) == tuple(map(str, sae.metadata.values()))
    assert "hash of the model's weights, tokens, images." in text
    assert ("from sae_lens import SAE" in text) == (sae.transform.kind == "none")


def test_unknown_facts_are_said_to_be_unknown():
    text = model_card(TopKDictionary(4, 8, k=2))
    data = ModelCard(text).data.to_dict()
    assert data == {"library_name": "vlsae", "tags": ["sparse-autoencoder", "interpretability", "topk"]}
    for said in ("model, hash of the model's weights, site, tokens, images, tokens seen in training.", "No licence",
                 "The recipe is not recorded.", "Nothing measured is recorded.", "'path/to/this/folder'"):  # fmt: skip
        assert said in text


def test_a_trained_dictionary_s_card_has_its_recipe():
    from vlsae import train
    from vlsae.training.config import TrainConfig
    from vlsae.training.run import origin

    data = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    assert set(origin(data)) <= set(ORIGIN)
    sae = train(data, "gated", n_latents=8, steps=2, batch_size=16, progress=False)
    sae.metadata["measured"] = {"explained variance": 0.5}
    text = model_card(sae)
    rows = table(text, "Training")
    assert rows == {name: str(value) for name, value in sae.metadata["recipe"].items()}
    assert set(rows) == set(asdict(TrainConfig()))
    assert table(text, "Facts")["Tokens seen in training"] == "32"
    assert table(text, "Facts")["Metadata: torch"] == torch.__version__
    assert table(text, "Measured") == {"explained variance": "0.5"}


NASTY = ["a | b", "a\n---\n# b", "`x` *y* __z__ _w_ \\| <b>&amp;</b> [l](u) ~~s~~ $m$", "\r\n| c | d |", "--- | ---"]


@pytest.mark.parametrize("value", NASTY)
def test_no_value_breaks_the_card(value):
    sae = planted(ReLUDictionary)
    sae.metadata = {
        "source": value,
        value: 1,
        "recipe": {"options": value},
        "measured": {value: value},
        "license": value,
    }
    sae.metadata["model"] = f"hf:{value}"
    text = model_card(sae, "me/sae")
    plain = model_card(planted(ReLUDictionary), "me/sae")
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == [line for line in plain.splitlines() if line.startswith("#")]
    data = ModelCard(text).data.to_dict()
    assert data["license"] == value
    assert "base_model" not in data
    facts = table(text, "Facts")
    assert (facts["Images"], facts["Model"], facts[f"Metadata: {value}"]) == (value, f"hf:{value}", "1")
    assert table(text, "Training") == {"options": value}
    assert table(text, "Measured") == {value: value}


@pytest.mark.parametrize("kind", ["sqrt_d", "centre_sqrt_d", "scalar"])
def test_the_card_s_unit_is_that_of_the_codes(kind):
    """One code of 1 moves the reconstruction by its atom times the card's number."""
    sae = planted(TopKDictionary, kind, k=2)
    unit = float(re.search(r"times ([\d.]+) it is in their units. Atoms have norms of 1\.", model_card(sae))[1])
    moved = sae.decode(torch.eye(10)) - sae.decode(torch.zeros(10, 10))
    assert torch.allclose(moved, unit * sae.atoms, atol=1e-5)  # differences of numbers of size 3 in float32


@pytest.mark.parametrize(
    ("model", "base", "is_clip"),
    [
        ("hf:google/siglip-base-patch16-224", "google/siglip-base-patch16-224", False),
        ("open_clip:ViT-B-16/openai", None, True),
        ("tiny", None, True),
        ("hf:/models/dino", None, False),
        ("hf:me/clip/sub", None, True),
    ],
)
def test_only_a_hub_id_becomes_the_base_model(model, base, is_clip):
    sae = planted(ReLUDictionary)
    sae.metadata = {"model": model}
    data = ModelCard(model_card(sae)).data
    assert data.base_model == base
    assert ("clip" in data.tags) == is_clip
