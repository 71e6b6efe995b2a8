"""Masks against their identities, and a linear read-out whose flips are known."""

import csv

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.adaptation.comparison.adaptations import NAMES, SITE, shifted
from vlsae.adaptation.adapted import AdaptedBackbone
from vlsae.adaptation.comparison.mask_table import MaskingCurves, MaskRow
from vlsae.adaptation.comparison.masking import _Masks, masking_curves
from vlsae.adaptation.comparison.site_tokens import SiteTokens
from vlsae.adaptation.methods.vpt import VPT
from vlsae.dictionaries.topk import TopKDictionary

RANKING = np.stack([np.random.default_rng(c).permutation(256) for c in range(2)])


@pytest.fixture(scope="module")
def prompted(tiny):
    return AdaptedBackbone(tiny, VPT(tiny, n_prompts=2, depth=2))


def masks(dictionary, conditions, classes, ranking=RANKING):
    return _Masks(dictionary, {"class": torch.from_numpy(ranking)}, conditions, torch.tensor(classes))


@pytest.mark.parametrize("kind", ["base", "prompted"])
def test_identities_of_logits(tiny, prompted, labelled, coarse, kind):
    """Kept wholly with its error, an image is as it was; without it, spliced; with nothing left, like all others."""
    model, images, classes = (tiny if kind == "base" else prompted), labelled[0][4:8], labelled[1][4:8]
    conditions = [("class", "off", 0, True), ("class", "on", "all", True), ("class", "on", "all", False),
                  ("class", "off", "all", False), ("class", "on", 20, True), ("class", "off", 20, True)]  # fmt: skip
    found, head = masks(coarse, conditions, classes), model.head(NAMES)
    logits = head(SiteTokens(model, SITE).forward(model.pixels(images), found))[found.index]
    plain, n = head(model.encode_image(images)), len(tiny.token_roles)
    assert (logits[:3] - plain).abs().max() < 1e-5
    with model.edit(SITE, lambda x: torch.cat([coarse(x[:, :n]), x[:, n:]], 1)):
        assert (logits[3] - head(model.encode_image(images))).abs().max() < 1e-4  # logits are of size 100
    if kind == "base":
        assert (logits[4] - logits[4, :1]).abs().max() < 1e-4
    assert (logits[5] - plain).abs().max() > 0.1 < (logits[6] - plain).abs().max()


def test_kept_and_removed_parts_add_up(tiny, labelled, coarse):
    """`D(on) + D(off) = xhat + b_dec`, and with the error kept `on + off = 2x - xhat + b_dec`, for every size."""
    x, classes = tiny.tokens(labelled[0][3:9], SITE), labelled[1][3:9]
    xhat = coarse(x)
    for k in (0, 1, 7, 100, 256, "all"):
        for error in (False, True):
            found = masks(coarse, [("class", way, k, error) for way in ("on", "off")], classes)
            variants, image = found(x)
            on, off = variants[found.index[1]], variants[found.index[2]]
            expected = (2 * x - xhat if error else xhat) + coarse.b_dec
            assert (on + off - expected).abs().max() < 1e-4
            assert all(image[row].tolist() == [*range(6)] for row in found.index)


def test_each_image_is_under_its_own_classes_mask(tiny, labelled, coarse):
    """Against dense codes; equal variants of an image are computed once."""
    x, classes = tiny.tokens(labelled[0][4:8], SITE), labelled[1][4:8]
    ks = (0, 3, 50, 255, "all")
    found = masks(coarse, [("class", way, k, True) for k in ks for way in ("on", "off")], classes)
    variants, _ = found(x)
    z = coarse.encode(x)
    kept = [z]
    for k in ks:
        first = torch.zeros(4, 1, 256, dtype=torch.bool)
        for i, c in enumerate(classes):
            first[i, 0, RANKING[c][: 256 if k == "all" else k]] = True
        kept += [z * first, z * ~first]
    wanted = torch.stack([x + coarse.decode(part) - coarse.decode(z) for part in kept])
    assert (variants[found.index] - wanted).abs().max() < 1e-4
    distinct = sum(len(torch.stack([part[i] for part in kept]).unique(dim=0)) for i in range(4))
    assert len(variants) == distinct < 4 * len(found.index)


def test_accuracies_of_all_conditions(tiny, labelled, coarse, tmp_path):
    """All images in any batches: unmasked equals the model's own accuracy, spliced that of splicing, off-all chance."""
    images, labels = labelled
    models = {"base": tiny, "adapted": shifted(tiny, 3.0)}
    options = {"ks": (0, 5, "all"), "error_kept": (True, False), "progress": False, "batch_size": 40}
    found = masking_curves(models, coarse, images, labels, NAMES, {"class": RANKING, "dataset": RANKING[0]}, **options)
    for name, model in models.items():
        right = model.zero_shot(images, NAMES).argmax(1) == torch.tensor(labels)
        assert found.unmasked(name).correct == int(right.sum())
        assert found.unmasked(name) == found.point(name, "class", "on", "all") == found.point(name, "dataset", "off", 0)
        with model.edit(SITE, coarse):
            spliced = model.zero_shot(images, NAMES).argmax(1) == torch.tensor(labels)
        assert found.point(name, "class", "on", "all", error_kept=False).correct == int(spliced.sum())
        assert found.point(name, "class", "off", "all", error_kept=False).accuracy == 1 / 2
        assert found.point(name, "dataset", "on", 0, error_kept=False).accuracy == 1 / 2
    assert found.unmasked("base") != found.unmasked("adapted")
    again = masking_curves(models, coarse, images, labels, NAMES, {"class": RANKING, "dataset": RANKING[0]},
                           **options | {"batch_size": 400})  # fmt: skip
    assert again.rows == found.rows
    with open(found.write_csv(tmp_path / "masks.csv"), encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * (1 + 2 * 3 * 2 * 2) == len({tuple(row.values())[:6] for row in rows})
    assert {row["condition"] for row in rows} >= {"unmasked", "on_5", "off_all_without_error"}
    assert all(float(row["low"]) - 1e-9 <= float(row["accuracy"]) <= float(row["high"]) + 1e-9 for row in rows)


def test_a_latent_flips_a_linear_answer_exactly_where_its_part_exceeds_the_margin(tiny, labelled):
    """At the pooled site the answer is the sign of `<x, w_y - w_y'>`: without s it flips iff `z_s <W_dec[s], .> > margin`."""
    images, weight = labelled[0], tiny.classifier(NAMES)
    x = tiny.tokens(images, "vision.pooled")[:, 0]
    sae = TopKDictionary(x.shape[1], 64, k=4, seed=2)
    sae.W_dec.data *= 2  # parts on either side of the margins
    z, answers = sae.encode(x), (F.normalize(x, dim=1) @ weight.T).argmax(1)
    step = weight[answers] - weight[1 - answers]
    margin, flips = (x * step).sum(1), []
    for s in z.sum(0).argsort(descending=True)[:6].tolist():
        found = masking_curves({"m": tiny}, sae, images, answers.tolist(), NAMES, {"one": np.array([s])}, ks=(1,),
                               directions=("off",), site="vision.pooled", progress=False)  # fmt: skip
        expected = z[:, s] * (step @ sae.W_dec[s]) > margin
        flips.append(int(expected.sum()))
        assert found.point("m", "one", "off", 1).correct == 12 - flips[-1]
    assert 0 < sum(flips) < 6 * 12 and 0 in flips


def test_base_new_and_their_harmonic_mean():
    rows = [MaskRow("m", "class", "on", 2, True, c, 10, right) for c, right in enumerate((8, 6, 3))]
    table = MaskingCurves(rows, ("a", "b", "c"))
    assert table.base_and_new("m", "class", "on", 2, [0, 1], [2]) == pytest.approx((70.0, 30.0, 42.0))
    assert table.point("m", "class", "on", 2).correct == 17
    with pytest.raises(ValueError, match="No row has"):
        table.point("m", "class", "off", 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rankings": {"r": np.zeros((3, 4), int)}}, r"give latents \[k_max\] or \[2, k_max\]"),
        ({"rankings": {"r": np.array([1, 1])}, "ks": (1,)}, "repeats a latent"),
        ({"rankings": {"r": np.array([256])}, "ks": (1,)}, "outside 0 to 255"),
        ({"ks": (257,)}, "has 256 latents"),
        ({"directions": ("up",)}, "use 'on', 'off'"),
        ({"labels": [0] * 3}, "one number from 0 to 1"),
        ({"site": "vision.1.attn_out"}, "does not carry whole tokens"),
    ],
)
def test_mistakes_are_explained(tiny, labelled, coarse, change, message):
    options = {"labels": labelled[1], "rankings": {"class": RANKING}, "progress": False} | change
    with pytest.raises(ValueError, match=message):
        masking_curves(
            {"m": tiny}, coarse, labelled[0], options.pop("labels"), NAMES, options.pop("rankings"), **options
        )
