"""`compare`: one dictionary, the same images, two models."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from vlsae.adaptation.adaptation import check_templates
from vlsae.adaptation.comparison.aggregation import Aggregates, aggregate_sweep
from vlsae.adaptation.comparison.changes import Changes, changes
from vlsae.adaptation.comparison.gain import Gain, decompose_gain
from vlsae.adaptation.comparison.mask_table import MaskingCurves
from vlsae.adaptation.comparison.masking import masking_curves
from vlsae.adaptation.comparison.masking_ranks import class_ranking, dataset_ranking, random_ranking
from vlsae.adaptation.comparison.overlap import KS, Overlap, overlaps
from vlsae.adaptation.comparison.ranking import order_latents
from vlsae.adaptation.comparison.remapping import Remapping, remapping
from vlsae.adaptation.comparison.text_side import ClassConcepts, class_concepts
from vlsae.adaptation.comparison.validity import Validity, validity
from vlsae.adaptation.prompts import clean_name
from vlsae.atomic import replacing
from vlsae.backbones.base import DEFAULT_TEMPLATES, Backbone
from vlsae.backbones.head import LinearHead
from vlsae.concepts.statistics import TAU
from vlsae.dictionaries.base import Dictionary
from vlsae.heatmaps.maps import dictionary_site
from vlsae.images.sources import ImageSource, load_images
from vlsae.metrics.result import Metric
from vlsae.splice.audits.inference import check_resampling
from vlsae.splice.model import SpLiCE

MASKS = (1, 2, 5, 10, 20, 50, 100)


@dataclass
class Comparison:
    """What adaptation changed, in numbers.

    Attributes:
        base, adapted: the models; dictionary: whose latents; site: where it reads.
        images, labels, class_names: what was compared on.
        settings: tau, k and the rest, for the record.
        validity: whether the dictionary fits both models.
        aggregates: of the base and the adapted model.
        vision_changed: whether any image has other codes in the adapted model, however slightly.
        overlaps: by level: "image", "class", "dataset".
        class_changes, dataset_changes: per-latent changes, tested.
        remapping: whose latents each class uses now.
        gain_result: where the accuracy comes from.
        curves: accuracy under masks, or None.
        class_concepts: class embeddings in words, before and after, or None.
    """

    base: Backbone
    adapted: Backbone
    dictionary: Dictionary
    site: str
    images: ImageSource
    labels: np.ndarray
    class_names: list[str]
    settings: dict[str, Any]
    validity: Validity
    aggregates: tuple[Aggregates, Aggregates]
    vision_changed: bool
    overlaps: dict[str, Overlap]
    class_changes: Changes
    dataset_changes: Changes
    remapping: Remapping
    gain_result: Gain
    curves: MaskingCurves | None = None
    class_concepts: list[ClassConcepts] | None = None

    def overlap(self, level: str = "class", k: int = 10) -> Metric:
        """Shared share of the top k latents at a level, with its interval and the random baseline.

        Raises:
            ValueError: for a level or k that was not computed.
        """
        if level not in self.overlaps or k not in self.overlaps[level].top_k:
            raise ValueError(
                f"level={level!r}, k={k} was not computed; levels are {', '.join(self.overlaps)}, and k one of "
                f"{', '.join(map(str, self.overlaps['class'].ks))} (`ks` of compare)."
            )
        return self.overlaps[level].top_k[k]

    def changed_latents(self, q: float = 0.05) -> list[int]:
        """Latents whose activation on the data set changed, at a false discovery rate of q; surest and largest first."""
        return self.dataset_changes.changed_latents(q)

    @property
    def gain(self) -> dict[str, float]:
        """Accuracy of both models and what it is made of: "base", "adapted", "gain", "latents", "remapping", ..."""
        return {name: metric.value for name, metric in self.gain_result.metrics.items()}

    @property
    def n_active(self) -> int:
        """Latents that are active in either model."""
        base, adapted = self.aggregates
        return int(((base.dataset > 0) | (adapted.dataset > 0)).sum())

    def examples(self, n: int = 4) -> dict[str, list[int]]:
        """Latents to look at: most active in both models, and most changed towards the adapted model or the base."""
        base, adapted = self.aggregates
        found, kinds = self.dataset_changes, self.dataset_changes.kinds()
        order = np.argsort(-np.abs(found.difference), kind="stable")
        up = [int(found.latents[i]) for i in order if kinds[i] in ("gained", "amplified")]
        down = [int(found.latents[i]) for i in order if kinds[i] in ("lost", "weakened")]
        moved = set(up) | set(down)
        least = np.minimum(base.dataset, adapted.dataset)
        common = [int(i) for i in order_latents(least) if least[i] > 0 and int(i) not in moved]
        return {
            "Used by both alike": common[:n],
            "Gained or amplified in the adapted model": up[:n],
            "Lost or weakened in the adapted model": down[:n],
        }

    def reference_images(self, latent: int, n: int = 6) -> list[int]:
        """Numbers of the images on which a latent is most active in either model, best first."""
        values = [np.asarray(a.image[:, [latent]].todense()).ravel() for a in self.aggregates]
        best = np.maximum(*values)
        return [int(i) for i in order_latents(best)[:n] if best[i] > 0]

    def summary(self) -> str:
        """What was found, in plain words made from the numbers."""
        gain, n = self.gain, len(self.labels)
        words = [
            f"On {n:,} images of {len(self.class_names)} classes, accuracy went from {gain['base']:.1%} to "
            f"{gain['adapted']:.1%}."
        ]
        if not self.vision_changed:
            words.append(
                "Every image has exactly the same latents in both models: this adaptation is pure remapping, and all it "
                "changed is how the same concepts are turned into classes."
            )
            return " ".join(words)
        top, kinds = self.overlap("class", self.settings["k"]), self.dataset_changes.kinds()
        up, down = (int(np.isin(kinds, pair).sum()) for pair in (("gained", "amplified"), ("lost", "weakened")))
        new = int((kinds == "gained").sum())
        words.append(
            f"Of the {self.settings['k']} latents a class uses most, {top.value:.1%} are the same as before (random latents: "
            f"{top.baselines['random']:.1%}). Over all images {up} latents are used more, of them {new} silent before, "
            f"and {down} less, of {self.n_active:,} active ones."
        )
        latents, rest = self.gain_result.metrics["latents"], self.gain_result.metrics["remapping"]
        words.append(
            f"{100 * latents.value:+.1f} points of accuracy come through the latents ({_interval(latents)}), "
            f"{100 * rest.value:+.1f} through what later blocks, texts and head make of them ({_interval(rest)})."
        )
        if not self.validity.fits:
            words.append("The dictionary does not fit both models, so that these numbers are to be taken with care.")
        return " ".join(words)

    def metrics(self) -> dict[str, Metric]:
        """Every score by name."""
        found = {m.name: m for level in self.overlaps.values() for m in (*level.top_k.values(), level.rbo)}
        return found | {f"gain_{name}": metric for name, metric in self.gain_result.metrics.items()}

    def save(self, folder: str | Path) -> Path:
        """Write `metrics.json`, `summary.txt`, `changes.csv`, `masking.csv` and the sparse counts of images."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"settings": self.settings, "metrics": {name: m.as_dict() for name, m in self.metrics().items()},
                 "changed_latents": self.changed_latents()}  # fmt: skip
        with replacing(folder / "metrics.json") as partial:
            partial.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        with replacing(folder / "summary.txt") as partial:
            partial.write_text(self.summary() + "\n", encoding="utf-8")
        _write_changes(folder / "changes.csv", self.class_changes, self.dataset_changes)
        for name, found in zip(("base", "adapted"), self.aggregates, strict=True):
            with replacing(folder / f"images_{name}.npz") as partial, open(partial, "wb") as file:
                sparse.save_npz(file, found.image)
        if self.curves is not None:
            self.curves.write_csv(folder / "masking.csv")
        return folder


def _interval(metric: Metric) -> str:
    low, high = metric.ci
    return f"95 %: {100 * low:+.1f} to {100 * high:+.1f}"


def _write_changes(path: Path, *tables: Changes) -> None:
    """One row for every class, or the data set (class -1), and latent."""
    columns = [field.name for field in fields(Changes) if field.name != "control"]
    with replacing(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow([*("class" if name == "rows" else name for name in columns), "kind"])
        for table in tables:
            values = [getattr(table, name) for name in columns]
            out.writerows(zip(*(v.tolist() for v in values), table.kinds().tolist(), strict=True))


def compare(
    base: Backbone, adapted: Backbone, dictionary: Dictionary, images: Any, *, labels: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None, templates: Sequence[str] = DEFAULT_TEMPLATES, tau: float = TAU, k: int = 10,
    ks: Sequence[int] = KS, masks: Sequence[int] = MASKS, curves: bool = True, n_boot: int = 200, splice: SpLiCE | None = None,
    site: str | None = None, batch_size: int = 16, seed: int = 0, progress: bool = True,
) -> Comparison:  # fmt: skip
    """Say what adaptation changed: one dictionary, the same images, two models.

    Patches become images, classes and a data set by counting tokens above tau (arXiv 2412.05276, section 3); their top latents
    are compared at every level, each latent's change is tested, the accuracy gain is split into latents and their use, and
    latents are kept and removed in both models.

    Args:
        base, adapted: models of one architecture; the second from `load_adapted` or `adapt`, or any other.
        dictionary: trained on tokens of the base, or of both.
        images: anything `load_images` opens.
        labels, class_names: class number of every image and the names; the source's own where None.
        templates: prompts with one `{}`, where a model reads them.
        tau: threshold above which a token counts.
        k: of the headline overlap and of the remapping.
        ks: sizes of the top whose overlap is taken.
        masks: sizes of the masks; curves: whether to make them, which takes longest.
        n_boot: resamples behind the intervals, at least 20.
        splice: decomposes class embeddings, where the texts changed; None leaves that out.
        site: where the dictionary reads; its own where None.
        batch_size: images a forward pass.
        seed: of resamples and random rankings.
        progress: show progress bars.

    Returns:
        A `Comparison`.

    Raises:
        ValueError: for images without classes, labels that do not fit, or models of unlike token grids.

    Example:
        >>> from vlsae import load_model, world
        >>> from vlsae.dictionaries.topk import TopKDictionary
        >>> tiny, sae = load_model("tiny"), TopKDictionary(192, 32, k=4)
        >>> found = compare(tiny, tiny, sae, world.scenes(6), labels=[0, 1] * 3, class_names=["cat", "dog"], curves=False,
        ...                 site="vision.-2.resid_post", progress=False)
        >>> found.overlap("class", 10).value, found.changed_latents(), found.gain["gain"]
        (1.0, [], 0.0)
    """
    source = load_images(images)
    labels = np.asarray(labels if labels is not None else source.known_labels())
    names = [clean_name(name) for name in (class_names if class_names is not None else source.class_names)]
    _check(base, adapted, labels, names, len(source), k, ks)
    check_templates(templates)
    check_resampling(n_boot, 0.95)
    site = dictionary_site(dictionary, site)
    shared = {"site": site, "batch_size": batch_size, "progress": progress}
    zero_shot = {"templates": templates, **shared}
    aggregates, means = zip(
        *(_aggregates(m, dictionary, source, labels, tau, shared) for m in (base, adapted)), strict=True
    )
    gain = decompose_gain(base, adapted, source, labels, names, dictionary=dictionary, shared=_shared(*aggregates),
                          n_boot=n_boot, seed=seed, **zero_shot)  # fmt: skip
    masked = None
    if curves:
        sizes = [k for k in masks if k <= dictionary.n_latents]
        masked = masking_curves({"base": base, "adapted": adapted}, dictionary, source, labels, names,
                                rankings_of(aggregates[0], len(names), seed), ks=(*sizes, "all"), templates=templates,
                                site=site, progress=progress)  # fmt: skip
    concepts = None
    if splice is not None and all(isinstance(m.head(names, templates), LinearHead) for m in (base, adapted)):
        concepts = class_concepts(splice, base, adapted, names, templates)
    settings = {
        "base": base.spec, "adapted": adapted.spec, "site": site,
        "dictionary": f"{dictionary.family}, {dictionary.n_latents} latents",
        "images": len(source), "classes": len(names), "templates": list(templates), "tau": tau, "k": k, "n_boot": n_boot,
        "seed": seed,
    }  # fmt: skip
    return Comparison(
        base, adapted, dictionary, site, source, labels, names, settings,
        validity(base, adapted, dictionary, source, labels, names, **zero_shot), aggregates,
        bool((means[0].image != means[1].image).nnz),
        overlaps(*aggregates, ks=sorted({*ks, k}), n_boot=n_boot, seed=seed), changes(*aggregates),
        changes(*aggregates, level="dataset", n_boot=n_boot, seed=seed), remapping(*aggregates, k=k), gain, masked, concepts,
    )  # fmt: skip


def rankings_of(aggregates: Aggregates, n_classes: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Latents in the order in which masks take them: by class `[C, n]`, by data set `[n]`, at random `[n]`.

    A class without images takes the data set's order.
    """
    whole, known = dataset_ranking(aggregates).order, set(aggregates.classes.tolist())
    rows = [class_ranking(aggregates, c).order if c in known else whole for c in range(n_classes)]
    return {"class": np.stack(rows), "dataset": whole, "random": random_ranking(aggregates, seed).order}


def _aggregates(model, dictionary, images, labels, tau: float, shared: dict) -> tuple[Aggregates, Aggregates]:
    """Counts above tau, and mean codes, in one pass.

    Raises:
        ValueError: where no token has a code above tau: there would be nothing to compare.
    """
    counts, means = aggregate_sweep(
        model, dictionary, images, labels, operators=("count", "mean"), taus=(tau,), **shared
    ).values()
    if not counts.image.nnz:
        raise ValueError(f"No latent is above tau={tau} on any token of {model.spec}; its largest mean code is "
                         f"{means.image.max():.3g}. Give a smaller tau.")  # fmt: skip
    return counts, means


def _shared(base: Aggregates, adapted: Aggregates) -> np.ndarray:
    """Latents that both models use on these images, bool `[n]`."""
    return (base.dataset > 0) & (adapted.dataset > 0)


def _check(base, adapted, labels: np.ndarray, names: list[str], n_images: int, k: int, ks: Sequence[int]) -> None:
    if len(labels) != n_images:
        raise ValueError(f"{n_images} images and {len(labels)} labels were given; give one label an image.")
    if not names or labels.min(initial=0) < 0 or labels.max(initial=-1) >= len(names):
        raise ValueError(
            f"A comparison needs the class of every image; labels are {sorted(set(labels.tolist()))[:10]}, class names "
            f"{names[:5]}. Put the images of each class into a sub-folder of its own, or give labels and class_names."
        )
    grids = [[role for role in model.token_roles if role != "prompt"] for model in (base, adapted)]
    if grids[0] != grids[1]:
        raise ValueError(
            f"{base.spec} has {len(grids[0])} tokens an image and {adapted.spec} {len(grids[1])}; compare models of one vision "
            "tower."
        )
    if k < 1 or min(ks, default=0) < 1:
        raise ValueError(f"k={k} and ks={tuple(ks)} were given; expected sizes of at least 1.")
