"""Nothing of the size tokens x latents is ever made of a sparse family: not in codes, statistics, scores or heatmaps."""

import subprocess
import sys
import tracemalloc

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlsae.concepts.statistics import latent_statistics
from vlsae.dictionaries import DICTIONARIES, selection
from vlsae.heatmaps.maps import latent_grids, stored_grids, strongest_latents
from vlsae.metrics import localise, reconstruction, shrinkage, spliced_zero_shot
from vlsae.training import train
from vlsae.world import scenes

FAMILIES = ("topk", "batch_topk", "abs_topk", "nested_dictionary", "relu")
N, K, IMAGES = 8192, 8, 24  # more latents than the model's own tensors have columns, so that they stay below the bound
SITE = "vision.-2.resid_post"


class Largest(TorchDispatchMode):
    """The most elements that any tensor had which an operation made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return out


@pytest.fixture(params=FAMILIES)
def sae(request, store):
    """A dictionary with about K active latents a token, as after training."""
    options = {} if request.param == "relu" else {"k": K}
    made = DICTIONARIES.get(request.param)(store.d, N, **options).requires_grad_(False)
    if request.param not in ("topk", "abs_topk"):
        x = store.images(0, 2).flatten(0, 1)
        made.b_enc.fill_(-float((x @ made.W_enc).flatten().topk(K * len(x)).values[-1]))
    return made


@pytest.fixture
def watched(monkeypatch):
    """Run something and hold its largest tensor and its numpy memory against dense codes of so many tokens."""
    monkeypatch.setattr(selection, "CHUNK", 1)  # blocks of the fewest rows, else one block would hold all of this test

    def watch(call, tokens):
        tracemalloc.start()
        with Largest() as seen:
            call()
        numpy_peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert seen.elements <= tokens * N / 4, seen.elements
        assert numpy_peak < tokens * N * 4 / 2, numpy_peak

    return watch


def test_codes_and_scores(sae, store, watched):
    tokens = len(store)
    x = store.images(0, IMAGES).flatten(0, 1)
    watched(lambda: sae.decode(sae.encode_sparse(x)), tokens)
    watched(lambda: sae.reconstruct(x), tokens)
    watched(lambda: reconstruction(sae, store), tokens)


def test_statistics(sae, store, watched):
    watched(lambda: latent_statistics(sae, store, n_top=2, progress=False), len(store))


@pytest.mark.parametrize("family", FAMILIES[:-1])  # half of all codes of an untrained ReLU dictionary are active
def test_training(family, store, watched):
    """Three steps of the fused engine with all tokens as one batch; most latents are dead, so that AuxK works too."""
    x = store.images(0, IMAGES).flatten(0, 1)
    options = {"n_latents": N, "k": K, "steps": 3, "batch_size": len(x), "engine": "fused", "progress": False,
               "dead_after_tokens": 1, "aux_k": 32}  # fmt: skip
    train(
        x[:64], family, **{**options, "n_latents": 256}
    )  # what loading compiled code allocates is no memory of a step
    watched(lambda: train(x, family, **options), len(x))


def test_heatmaps(sae, tiny, store, watched):
    drawn = scenes(IMAGES, seed=5)
    watched(lambda: latent_grids(tiny, sae, drawn, [3, 5], SITE), len(store))
    watched(lambda: stored_grids(store, sae, range(IMAGES), [3, 5]), len(store))
    watched(lambda: strongest_latents(tiny, sae, drawn[0], 4, SITE), len(store))


def test_localisation_and_zero_shot(sae, tiny, store, watched):
    x = store.images(0, IMAGES)
    owner = torch.arange(x.shape[0] * x.shape[1]).reshape(x.shape[:2]).numpy() % 3
    watched(lambda: localise(sae.encode_sparse, x, owner, 3, sae.signed), len(store))
    drawn = scenes(IMAGES, seed=5)
    options = {"site": SITE, "templates": ("{}",), "modes": ("spliced",)}
    watched(lambda: spliced_zero_shot(tiny, sae, drawn, [0] * IMAGES, ["cat", "bus"], **options), len(store))


def test_refined_codes(sae, store, watched, monkeypatch):
    if sae.signed:
        pytest.skip("refinement is for non-negative codes")
    monkeypatch.setattr(shrinkage, "CHUNK", 16)  # its own tensors are chunk x active x d
    x = store.images(0, 12).flatten(0, 1)
    watched(lambda: shrinkage.refined_codes(sae, x), len(x))


def test_the_watch_sees_dense_codes(sae, store, watched):
    """The bound is a real one: `encode` breaks it."""
    with pytest.raises(AssertionError):
        watched(lambda: sae.encode(store.images(0, IMAGES)), len(store))


MILLION = """
import torch
from types import SimpleNamespace
from vlsae.concepts.statistics import latent_statistics
from vlsae.dictionaries.topk import TopKDictionary

torch.set_num_threads(1)
sae = TopKDictionary(16, 1_000_000, k=32).requires_grad_(False)
sae.encode_sparse(torch.randn(2, 16))  # compiled code, and columns of the encoder as rows
x = torch.randn(1024, 16, generator=torch.Generator().manual_seed(0))
store = SimpleNamespace(d=16, n_images=16, labels=[-1] * 16, class_names=[],
                        batches=lambda n: ((i, x.view(16, 64, 16)[i : i + n]) for i in range(0, 16, n)))


def encode():
    codes = sae.encode_sparse(x)
    assert len(codes.values) == 32 * 1024 and codes.rows[-1] == 1023
    sae.decode(codes)


def statistics():
    found = latent_statistics(sae, store, n_top=2, progress=False)
    assert found.token_count.sum() == 32 * 1024


def memory(name):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(name))


resident = memory("VmRSS")
for work in (encode, statistics):
    work()
    print(memory("VmHWM") - resident)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_a_million_latents():
    """Peak resident memory above the weights, in MB, of 1,024 tokens with 32 of 1,000,000 latents each.

    Dense codes alone would be 4,096 MB. Encoding: one block of 64 tokens, 256 MB, and room for nearly as much again.
    Statistics, in the same process afterwards: their own result, 608 MB (65 bins of 8 bytes are 520 of it), as far as its
    pages are touched.
    """
    done = subprocess.run([sys.executable, "-c", MILLION], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    encoding, both = map(float, done.stdout.split())
    assert encoding < 500
    assert both < 1200
