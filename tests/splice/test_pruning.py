"""Pruning against its definition, one comparison after the other."""

import numpy as np
import pytest

from vlsae.splice.pruning import Pruner


def _unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _clusters(n: int, d: int, seed: int):
    """Rows around fewer centres, so that neighbours are above and below the threshold."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((n // 6, d))
    return _unit(
        centres[rng.integers(0, len(centres), n)] + rng.uniform(0.1, 0.9, (n, 1)) * rng.standard_normal((n, d))
    )


def _texts(n: int, seed: int):
    """Words, and after each fourth a pair of two words seen before."""
    rng = np.random.default_rng(seed)
    texts = ["w0", "w1"]
    while len(texts) < n:
        i = len(texts)
        a, b = rng.integers(0, i, 2)
        both = f"{texts[a]} {texts[b]}"
        is_new = i % 4 == 3 and " " not in texts[a] + texts[b] and both not in texts
        texts.append(both if is_new else f"w{i}")
    return texts


def _embed_by_table(texts, rows):
    """Most pairs near to the mean of their words, so that some are explained by them."""
    table = dict(zip(texts, rows))
    for i, text in enumerate(texts):
        if " " in text and i % 3:
            a, b = text.split()
            table[text] = _unit((table[a] + table[b] + 0.25 * (i % 5) * table[text])[None])[0]
    return table


def _brute_force(texts, table, quotas, similarity):
    """The definition, one comparison after the other, in double precision."""
    kept, left, similar, explained = [], list(quotas), 0, 0
    for text in texts:
        if not left[" " in text]:
            continue
        row = table[text].astype(float)
        if " " in text:
            mean = sum(table[w].astype(float) for w in text.split())
            if row @ mean / np.linalg.norm(mean) > similarity:
                explained += 1
                continue
        if any(row @ table[k].astype(float) > similarity for k in kept):
            similar += 1
            continue
        kept.append(text)
        left[" " in text] -= 1
    return kept, similar, explained


@pytest.mark.parametrize("block", [1, 37, 1024])
@pytest.mark.parametrize("quotas", [(10_000, 10_000), (150, 20)])
def test_pruning_equals_its_definition(block, quotas):
    texts = _texts(600, seed=1)
    table = _embed_by_table(texts, _clusters(600, 24, seed=2))
    expected, similar, explained = _brute_force(texts, table, quotas, 0.8)
    pruner = Pruner(lambda some: np.stack([table[t] for t in some]), quotas, 0.8)
    kept = []
    for i in range(0, len(texts), block):
        part = texts[i : i + block]
        kept += [t for t, taken in zip(part, pruner.offer(part)) if taken]
    assert kept == expected
    assert (pruner.similar, pruner.explained) == (similar, explained)
    assert min(similar, explained) > 3 and len(kept) > 100  # or the test would show little
    rows = np.stack([table[t] for t in kept])
    assert (rows @ rows.T - 2 * np.eye(len(rows))).max() <= 0.8


def test_a_pair_whose_words_cancel_out_is_not_explained():
    table = {"up": [1, 0], "down": [-1, 0], "up down": [0, 1]}
    pruner = Pruner(lambda some: np.float32([table[t] for t in some]), (5, 5), -0.5)
    assert pruner.offer(["up down"]) == [True]


def test_pruning_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="cosine from -1 to 1"):
        Pruner(None, (1, 1), 90)
    with pytest.raises(ValueError, match="not finite"):
        Pruner(lambda some: np.full((len(some), 2), np.nan), (1, 1)).offer(["a"])
