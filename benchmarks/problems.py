"""Synthetic problems of the sizes and the structure that real ones have."""

from __future__ import annotations

import numpy as np


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def splice_problem(K: int, d: int, N: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A vocabulary `C [K, d]` and image embeddings `Z [N, d]`, both centred, of unit norm and float32.

    The vocabulary has what makes it hard for sparse solvers: a spectrum that falls like a power law, synonyms (many
    words share a centre), and a common direction that centring takes out. Images are mixtures of 8 to 39 words, drawn by
    Zipf popularity, and noise in all directions: at d = 512 and `l1 = 0.25` about 20 weights are non-zero.
    """
    rng = np.random.default_rng(seed)
    rank, centres = max(2, d // 4), max(2, (3 * K) // 20)
    spectrum = (1.0 + np.arange(rank, dtype=np.float32)) ** -0.5
    latent = rng.standard_normal((K, rank), dtype=np.float32)
    latent += rng.standard_normal((centres, rank), dtype=np.float32)[rng.integers(0, centres, K)]
    basis = np.linalg.qr(rng.standard_normal((d, rank)))[0].T.astype(np.float32)
    C = (latent * spectrum) @ basis
    del latent
    spread = 0.035 * np.linalg.norm(C, axis=1, keepdims=True)
    C += spread * rng.standard_normal((K, d), dtype=np.float32)
    common = _unit(rng.standard_normal((1, d), dtype=np.float32))
    C = _unit(_unit(C) + np.float32(1.2) * common)
    C -= C.mean(0)
    C = _unit(C)

    popularity = (1.0 + rng.permutation(K)) ** -0.8
    popularity /= popularity.sum()
    images = np.empty((N, d))
    for image in images:
        words = rng.choice(K, min(K, int(rng.integers(8, 40))), replace=False, p=popularity)
        image[:] = (rng.exponential(1.0, len(words)) + 0.2) @ C[words]
    images = _unit(images) + 0.75 * _unit(rng.standard_normal((N, d)))
    images = _unit(images)
    if N > 1:
        images = _unit(images - images.mean(0))
    return np.ascontiguousarray(C, dtype=np.float32), np.ascontiguousarray(images, dtype=np.float32)
