"""Compiled loops on several threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise

import torch


@lru_cache(maxsize=1)
def _pool(_process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count())


def in_threads(kernel: Callable, n: int, *args, least: int = 64) -> None:
    """`kernel(*args, lo, hi)` for shares of `range(n)`, on as many threads as torch uses."""
    threads = max(1, min(torch.get_num_threads(), n // least))
    if threads == 1:
        kernel(*args, 0, n)
        return
    cuts = [n * i // threads for i in range(threads + 1)]
    for done in [_pool(os.getpid()).submit(kernel, *args, lo, hi) for lo, hi in pairwise(cuts)]:
        done.result()
