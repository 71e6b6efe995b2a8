"""`compare` as a whole, on adaptations whose effect is known, and its page and command."""

import csv
import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from vlsae.adaptation.adaptation import Adaptation
from vlsae.adaptation.adapted import AdaptedBackbone
from vlsae.adaptation.comparison.comparison import compare
from vlsae.adaptation.comparison.joint import joint_tokens
from vlsae.adaptation.methods.coop import CoOp
from vlsae.adaptation.methods.vpt import VPT
from vlsae.adaptation.tiny import STYLE, TEMPLATES, few_shot_task
from vlsae.adaptation.tuning import adapt
from vlsae.cli import main
from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.report.comparison import write_comparison
from vlsae.training.loop import train
from vlsae.world import scenes
from vlsae.world.clip_data import WORDS, presence
from vlsae.world.layout import spurious_background

SITE = "vision.-2.resid_post"


@pytest.fixture(scope="module")
def basis():
    """192 latents with orthonormal atoms, each the positive part of one coordinate: no latent moves with another."""
    rotation = torch.linalg.qr(torch.randn(192, 192, generator=torch.Generator().manual_seed(0)))[0]
    dictionary = ReLUDictionary(192, 192)
    dictionary.W_dec.data.copy_(rotation)
    dictionary.W_enc.data.copy_(rotation.T)
    dictionary.metadata["site"] = SITE
    return dictionary


class Amplified(Adaptation):
    """A model in which what one latent writes is written three times over."""

    method, changes = "amplified", ("vision",)

    def __init__(self, dictionary, latent):
        super().__init__()
        self.atom = dictionary.atoms[latent]

    @contextmanager
    def vision(self, model):
        def edit(tokens):
            return tokens + 2 * (tokens @ self.atom).clamp_min(0)[..., None] * self.atom

        with model.rewrite(SITE, edit):
            yield


def _compare(base, adapted, dictionary, n=24, **options):
    drawn, labels, names = few_shot_task(n, seed=7)
    options = {"n_boot": 40, "curves": False, "templates": TEMPLATES, "progress": False} | options
    return compare(base, adapted, dictionary, drawn, labels=labels, class_names=names, **options)


def test_a_model_against_itself_has_not_changed(tiny, basis):
    found = _compare(tiny, tiny, basis, n=10, curves=True, masks=(5,))
    assert all(m.value == 1 for level in found.overlaps.values() for m in level.top_k.values())
    assert found.changed_latents(0.99) == []
    assert [found.gain[part] for part in ("gain", "latents", "remapping")] == [0.0, 0.0, 0.0]
    assert found.validity.base == found.validity.adapted
    curves = found.curves
    for ranking in ("class", "dataset", "random"):
        assert curves.point("base", ranking, "on", "all") == curves.unmasked("base") == curves.unmasked("adapted")


def test_a_change_of_texts_alone_is_pure_remapping(tiny, basis):
    coop = CoOp(tiny, n_ctx=4, seed=3)
    coop.ctx.data.mul_(30)  # far from any word, so that accuracy changes
    found = _compare(tiny, AdaptedBackbone(tiny, coop), basis)
    assert not found.vision_changed
    assert found.overlap("image", 10).value == found.overlap("class", 10).value == 1
    assert found.changed_latents(0.99) == []
    assert found.gain["latents"] == 0
    assert found.gain["remapping"] == found.gain["gain"] != 0
    assert "pure remapping" in found.summary()


def test_an_amplified_direction_is_exactly_the_latent_that_changed(tiny, basis):
    """With tau at the median of its positive codes, three times as much lifts many of its tokens above, and no other's."""
    latent = 17
    z = basis.encode(tiny.tokens(few_shot_task(24, seed=7)[0], SITE))[..., latent]
    adapted = AdaptedBackbone(tiny, Amplified(basis, latent))
    found = _compare(tiny, adapted, basis, tau=float(z[z > 0].detach().median()))
    assert found.changed_latents() == [latent]
    assert found.examples()["Gained or amplified in the adapted model"] == [latent]
    assert latent not in found.examples(192)["Used by both alike"]


def test_the_page_and_the_tables_hold_what_was_found(tiny, basis, tmp_path):
    found = _compare(
        tiny, AdaptedBackbone(tiny, VPT(tiny, n_prompts=2, depth=3)), basis, n=8, curves=True, masks=(0, 5)
    )
    found.save(tmp_path)
    facts = json.loads((tmp_path / "metrics.json").read_text())
    assert facts["metrics"]["gain_gain"]["value"] == found.gain["gain"]
    assert facts["changed_latents"] == found.changed_latents()
    with open(tmp_path / "masking.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["condition"] for row in rows} == {"unmasked", "on_0", "on_5", "on_all", "off_0", "off_5", "off_all"}
    with open(tmp_path / "changes.csv") as file:
        assert sum(1 for _ in file) == 1 + len(found.class_changes) + len(found.dataset_changes)
    page = write_comparison(found, tmp_path / "report.html").read_text()
    for title in (
        "Does the dictionary fit",
        "Where the accuracy comes from",
        "Which latents both use",
        "How few latents",
    ):
        assert title in page
    with pytest.raises(ValueError, match="was not computed"):
        found.overlap("class", 7)


def test_the_command_writes_the_page(tiny, basis, tmp_path, capsys):
    drawn, labels, names = few_shot_task(6, seed=7)
    for i, (scene, label) in enumerate(zip(drawn, labels, strict=True)):
        (tmp_path / "data" / names[label]).mkdir(parents=True, exist_ok=True)
        scene.image.save(tmp_path / "data" / names[label] / f"{i}.png")
    basis.save(tmp_path / "dictionary")
    AdaptedBackbone(tiny, VPT(tiny, n_prompts=1)).save(tmp_path / "vpt")
    out = tmp_path / "out"
    options = ["--dictionary", str(tmp_path / "dictionary"), "--out", str(out), "--no-curves", "--resamples", "20"]
    given = ["compare", "tiny", str(tmp_path / "vpt"), "--data", str(tmp_path / "data"), "--json", *options]
    assert main(given) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["report"] == str(out / "report.html")
    assert printed["gain"] == pytest.approx(printed["adapted"] - printed["base"])
    assert (out / "summary.txt").read_text().startswith("On 6 images")
    assert main([*given[:2], str(tmp_path / "nothing"), *given[3:]]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0]}, "one label an image"),
        ({"class_names": []}, "needs the class"),
        ({"k": 0}, "at least 1"),
        ({"ks": ()}, "at least 1"),
        ({"tau": 1e6}, "Give a smaller tau"),
        ({"templates": "a {}"}, "give a list of prompts"),
        ({"templates": ["a photo"]}, "each with one"),
        ({"n_boot": 5}, "5"),
    ],
)
def test_mistakes_are_explained(tiny, basis, change, message):
    options = {"labels": [0, 1], "class_names": ["cat", "dog"], "progress": False} | change
    with pytest.raises(ValueError, match=message):
        compare(tiny, tiny, basis, scenes(2), **options)


@pytest.fixture(scope="module")
def shortcut(tiny):
    """The tiny CLIP after tuning on scenes whose ground gives the class away."""
    _, _, names = few_shot_task(1, seed=2)
    tied = scenes(400, seed=1, spurious=1.0, **STYLE)
    number = [names.index(scene.objects[0].name) for scene in tied]
    return adapt(tiny, tied, "full", labels=number, class_names=names, templates=TEMPLATES, lr=1e-3, epochs=6, batch_size=16,
                 warm_up_lr=0.0, progress=False)  # fmt: skip


def _of_both(tiny, tuned, site):
    """A dictionary of both models; a comparison under it; latents by change, largest first; which respond to grounds."""
    sae = train(joint_tokens([tiny, tuned], scenes(500, seed=11, **STYLE), site, progress=False), "topk", n_latents=768, k=16,
                steps=400, batch_size=2048, lr=2e-3, input_transform="sqrt_d", decay=0.4, progress=False)  # fmt: skip
    drawn, labels, names = few_shot_task(300, seed=5)
    found = compare(tiny, tuned, sae, drawn, labels=labels, class_names=names, templates=TEMPLATES, curves=False, site=site,
                    n_boot=20, progress=False)  # fmt: skip
    truth = np.stack([presence(scene.labels) for scene in drawn])
    z = found.aggregates[1].image.toarray().astype(float)
    r = (z - z.mean(0)).T @ (truth - truth.mean(0)) / np.maximum(np.outer(z.std(0), truth.std(0)), 1e-9)
    ground = np.array([WORDS[best].endswith("background") for best in r.argmax(1)])
    return sae, np.array(found.examples(768)["Gained or amplified in the adapted model"]), ground, z.sum(0) > 0


@pytest.mark.slow
def test_a_learned_shortcut_shows_as_latents_of_the_background(tiny, shortcut):
    """Tuned where the ground gives the class away, a model has more latents of grounds, though no one named them."""
    _, grown, ground, active = _of_both(tiny, shortcut, SITE)
    assert ground[grown[:12]].mean() >= 0.9
    assert ground[grown[:12]].mean() > ground[active].mean() + 0.2


@pytest.mark.slow
def test_without_them_the_worst_group_is_right_again(tiny, shortcut):
    """Scenes whose ground belongs to another class: base .76, tuned .65, and .73 without the 60 latents that grew most.

    The site is the first block's: later, the class token has read the grounds already.
    """
    site = "vision.0.resid_post"
    sae, grown, ground, active = _of_both(tiny, shortcut, site)
    drawn, labels, names = few_shot_task(400, seed=2)
    tied = {name: spurious_background(name) for name in names}
    worst = [i for i, scene in enumerate(drawn)
             if scene.background in tied.values() and scene.background != tied[names[labels[i]]]]  # fmt: skip
    right = torch.tensor([labels[i] for i in worst])

    def accuracy(latents):
        gone = torch.zeros(768).index_fill(0, torch.as_tensor(latents, dtype=torch.long), 1.0)

        def without(tokens):
            z = sae.encode(tokens.flatten(0, 1))
            return tokens - (sae.decode(z) - sae.decode(z * (1 - gone))).view_as(tokens)

        with shortcut.edit(site, without):
            found = shortcut.zero_shot([drawn[i] for i in worst], names, TEMPLATES)
        return float((found.argmax(1) == right).float().mean())

    at_random = np.random.default_rng(0).choice(np.flatnonzero(active), 60, replace=False)
    masked = accuracy(grown[ground[grown]][:60])
    assert masked >= accuracy([]) + 0.05  # two standard errors of a paired difference of 209 images
    assert masked >= accuracy(at_random) + 0.05
