"""The page: self-contained, complete, and shown by a browser without a fault."""

import re
import shutil
from io import BytesIO
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from vlsae.concepts.statistics import latent_statistics
from vlsae.report import write_report
from vlsae.report.figures import (
    by_layer,
    latent_scatter,
    layer_heatmap,
    localisation_curves,
    name_lines,
    new_figure,
    png,
    spread,
)
from vlsae.report.page import cell, table, write_page
from vlsae.training import train
from vlsae.world import concepts, scenes

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"


@pytest.fixture(scope="module")
def page(tiny, store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    sae = train(store, "topk", n_latents=64, k=6, steps=60, batch_size=256, progress=False)
    statistics = latent_statistics(sae, store, labels=np.arange(24) % 3, n_classes=3, progress=False)
    from vlsae.images import load_images

    return write_report(
        store, sae, statistics, folder / "report.html", model=tiny, images=load_images(scenes(24, seed=5)),
        vocabulary=concepts()["object"], n_cards=6,
    )  # fmt: skip


def test_self_contained(page):
    """Nothing is fetched: every source is inside the file."""
    html = page.read_text(encoding="utf-8")
    assert re.findall(r'src="(?!data:)', html) == []
    assert "<script" not in html
    assert "http://" not in html
    assert "https://" not in html
    assert html.count("<article") == 6
    assert "of the variance is explained" in html


def test_wrong_statistics_are_refused(tiny, store, tmp_path):
    sae = train(store, "topk", n_latents=16, k=2, steps=2, batch_size=64, progress=False)
    other = train(store, "topk", n_latents=8, k=2, steps=2, batch_size=64, progress=False)
    statistics = latent_statistics(sae, store, progress=False)
    with pytest.raises(ValueError, match="statistics are of 16 latents on 24 images; the dictionary has 8"):
        write_report(store, other, statistics, tmp_path / "r.html", model=tiny)


def test_a_changed_source_or_model_is_noticed(tiny, store, tmp_path):
    from vlsae.images import load_images

    sae = train(store, "topk", n_latents=16, k=2, steps=2, batch_size=64, progress=False)
    statistics = latent_statistics(sae, store, progress=False)
    sae.metadata["site"] = store.site
    with pytest.raises(ValueError, match="has changed since extraction: number"):
        write_report(store, sae, statistics, tmp_path / "r.html", model=tiny, images=load_images(scenes(24, seed=6)))
    from tests.backbones.models import vit

    with pytest.raises(ValueError, match="the store was made with"):
        write_report(store, sae, statistics, tmp_path / "r.html", model=vit(16), images=load_images(scenes(24, seed=5)))


def test_text_is_escaped(tmp_path):
    path = write_page(tmp_path / "p.html", "<b>", table(["<i>"], [["x"]]))
    assert "<title>&lt;b&gt;</title>" in path.read_text()
    assert "<th>&lt;i&gt;</th>" in path.read_text()
    assert cell(None) == "–"


def test_figures_are_pictures(store):
    sae = train(store, "topk", n_latents=32, k=2, steps=5, batch_size=64, progress=False)
    statistics = latent_statistics(sae, store, progress=False)
    assert latent_scatter(statistics)[:4] == b"\x89PNG"
    from vlsae.metrics.localisation import Localisation

    some = Localisation([0, 1], [3, 4], [0.9, 0.99], [0.9, 0.9], [0.5, 0.5], [1.0, 1.0], [0.5, 0.5], [9, 9])
    assert localisation_curves({"sae": some, "pca": some})[:4] == b"\x89PNG"


def test_the_map_of_layers_shows_latents_where_they_are():
    """Latents of one layer each, shuffled: a staircase, and so are the lightest pixels of the figure."""
    layer = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 5))
    known = np.vstack([np.eye(4)[layer], np.full((3, 4), np.nan)])
    assert (layer[by_layer(known)] == np.repeat(np.arange(4), 5)).all()
    pixels = np.asarray(Image.open(BytesIO(layer_heatmap(known, n_tokens=60))).convert("RGB")).astype(int)
    lightest = np.abs(pixels - np.array([254, 232, 56])).max(2) < 8  # the upper end of cividis
    columns = np.flatnonzero(lightest[:, : pixels.shape[1] * 3 // 4].any(0))
    heights = [np.flatnonzero(lightest[:, x]).mean() for x in columns]
    assert np.ptp(columns) > pixels.shape[1] / 2
    assert (np.diff(heights) <= 0.5).all() and len(set(np.round(heights, -1))) == 4
    with pytest.raises(ValueError, match="3 names of layers and 20 active latents of 23"):
        layer_heatmap(known, ["a", "b", "c"])


def test_labels_keep_their_distance_and_their_order():
    """As near to where they belong as the gap lets them; crowded ones share the way, none leaves the axes."""
    assert spread([0.2, 0.8], 0.1, 0, 1).tolist() == [0.2, 0.8]
    assert np.allclose(spread([0.5, 0.5, 0.5], 0.1, 0, 1), [0.4, 0.5, 0.6])
    assert np.allclose(spread([1.0, 0.99, 0.3], 0.1, 0, 1), [1.0, 0.9, 0.3])
    assert np.allclose(spread([0.0, 0.0], 0.1, 0, 1), [0, 0.1])
    wanted = np.random.default_rng(0).random(20)
    placed = spread(wanted, 0.04, 0, 1)
    assert (np.argsort(placed) == np.argsort(wanted)).all()
    assert np.diff(np.sort(placed)).min() > 0.04 - 1e-9
    assert spread([], 0.1, 0, 1).shape == (0,)


def test_names_of_lines_on_each_other_do_not_overlap():
    """Twenty lines that end in one point, and one that ends far before: measured on the drawn figure."""
    fig = new_figure(6, 5)
    ax = fig.subplots()
    ax.set(xscale="log", xlim=(1, 30), ylim=(0, 1))
    ends = {f"family_{i}": (24.0, 0.9) for i in range(20)} | {"early": (1.5, 0.9)}
    name_lines(ax, ends, dict.fromkeys(ends, "#0072B2"))
    png(fig)
    boxes = [Text.get_window_extent(text) for text in ax.texts]  # of the letters, without the leaders
    assert len(boxes) == 21
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert all(box.x1 <= fig.bbox.x1 for box in boxes)


@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="no Chromium here; apt-get install chromium")
def test_a_browser_shows_it(page):
    """Rendered by Chromium: every picture decodes, nothing sticks out to the right, no request leaves the file."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"])
        for width in (1280, 420):
            tab = browser.new_page(viewport={"width": width, "height": 900})
            requests = []
            tab.on("request", lambda r, requests=requests: requests.append(r.url))
            tab.goto(page.as_uri())
            assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
            assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            assert [r for r in requests if not r.startswith(("file:", "data:"))] == []
        browser.close()
