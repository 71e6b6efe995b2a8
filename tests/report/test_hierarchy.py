"""The concept tree as HTML: its nesting is the forest's, what is left out is counted, and names are text."""

from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vlsae.concepts.hierarchy import Forest
from vlsae.report.hierarchy import concept_tree

PARENT = [-1, 0, 1, 0, -1, 4, -1]
NAMES = ["<root>", "a", "b", "c", "d", "e", "alone"]


class Nesting(HTMLParser):
    """Reads the parent of every name back from the page."""

    def __init__(self):
        super().__init__()
        self.parent, self.open, self.inside = {}, [], False

    def handle_starttag(self, tag, attributes):
        if tag == "details":
            self.open.append(None)
        self.inside |= tag == "b"

    def handle_endtag(self, tag):
        if tag == "details":
            self.open.pop()
        if tag == "b":
            self.inside = False

    def handle_data(self, data):
        if not self.inside:
            return
        above = [name for name in self.open if name is not None]
        self.parent[data] = above[-1] if above else None
        if self.open and self.open[-1] is None:
            self.open[-1] = data


def _forest():
    density = np.linspace(0.7, 0.1, 7)
    parent = np.array(PARENT)
    return Forest(parent, np.where(parent >= 0, 0.9, np.nan), density, np.zeros(7, np.int64))


def _statistics(n=7):
    return SimpleNamespace(top_images=np.tile([0, 1, -1], (n, 1)))


def _picture(i):
    return Image.new("RGB", (8, 8), "white")


def test_the_page_nests_as_the_forest_does():
    page = Nesting()
    page.feed(concept_tree(_forest(), _statistics(), _picture, NAMES))
    titles = [f"#{i} · {name}" for i, name in enumerate(NAMES)]
    expected = {titles[i]: titles[p] if p >= 0 else None for i, p in enumerate(PARENT) if i != 6}
    assert page.parent == expected


def test_what_is_left_out_is_counted_and_names_are_text():
    html = concept_tree(_forest(), _statistics(), _picture, NAMES, n_trees=1, n_children=1)
    assert "and 1 more" in html
    assert "&lt;root&gt;" in html
    assert "<root>" not in html
    assert "· d" not in html  # the second tree
    assert "active on 70.0%; 3 below" in html
    assert "parent active on 90% of that" in html


def test_another_number_of_latents_is_refused():
    with pytest.raises(ValueError, match="A forest of 7 latents, statistics of 5 and 7 names"):
        concept_tree(_forest(), _statistics(5), _picture, NAMES)
