"""What another device computes is what the processor computes; `VLSAE_TEST_DEVICE` names it, CUDA where nothing does.

Bounds: float32 sums of some hundred terms in another order, without TF32: 1e-5 of the largest value, more behind many layers.
"""

import inspect
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import vlsae
from tests.contract.test_dictionaries import make
from tests.contract.test_solvers import check, problem
from tests.training.test_training import RECIPE, matched_cosine
from vlsae.adaptation.adaptation import ADAPTATIONS
from vlsae.adaptation.adapted import AdaptedBackbone
from vlsae.cli import main
from vlsae.dictionaries import DICTIONARIES
from vlsae.dictionaries.topk import TopKDictionary
from vlsae.interop.doctor import examine
from vlsae.splice.solve import solve
from vlsae.splice.solvers import SOLVERS
from vlsae.world import planted, scenes

DEVICE = os.environ.get("VLSAE_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device is here")
SITE = "vision.4.resid_post"
FIXTURES = Path(__file__).parents[1] / "interop" / "fixtures"


def close(there, here, rtol=1e-5):
    there, here = (torch.as_tensor(value).detach().cpu().double() for value in (there, here))
    assert torch.isfinite(here).all()
    assert (there - here).abs().max() <= rtol * here.abs().max()


@pytest.fixture(scope="module", autouse=True)
def exact_products():
    """Without TF32, which torch allows in convolutions unless it is told otherwise."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.fixture(scope="module")
def there():
    return vlsae.load_model("tiny", DEVICE)


@pytest.fixture(scope="module")
def pictures():
    return scenes(12, seed=5)


@pytest.fixture(scope="module")
def trained(tiny, pictures):
    """A dictionary of the tiny CLIP that has seen a little training."""
    tokens = tiny.tokens(pictures, SITE)[:, 1:].flatten(0, 1)
    sae = vlsae.train(tokens, "topk", n_latents=128, k=8, steps=60, batch_size=256, progress=False)
    sae.metadata |= {"model": "tiny", "site": SITE}
    return sae


@pytest.mark.parametrize("family", list(DICTIONARIES))
def test_codes_and_gradients_of_every_family(family):
    """Vectors away from ties: active latents are the same, values and gradients up to rounding."""
    here, sae = make(family), make(family).to(DEVICE)
    x = torch.randn(64, here.d, generator=torch.Generator().manual_seed(0))
    z, codes = here.encode(x), sae.encode_sparse(x.to(DEVICE))
    assert codes.values.device.type == torch.device(DEVICE).type
    assert torch.equal(codes.dense().cpu() != 0, z != 0)
    close(codes.dense(), z)
    close(sae.encode(x.to(DEVICE)), z)
    close(sae.decode(codes), here.decode(z))
    if here.trainable:
        for one in (here, sae):
            one.prepare(x.to(one.W_dec.device))
            (one.trace(x.to(one.W_dec.device)).xhat - x.to(one.W_dec.device)).square().mean().backward()
        pairs = [(p.grad.cpu(), q.grad) for p, q in zip(sae.parameters(), here.parameters()) if q.grad is not None]
        largest = max(float(there.abs().max()) for _, there in pairs)
        for found, expected in pairs:  # a bias before a batch norm has a gradient of rounding alone
            assert (found - expected).abs().max() <= 1e-4 * expected.abs().max() + 1e-6 * largest


@pytest.mark.parametrize("engine", ["torch", "fused"])
@pytest.mark.parametrize(("arch", "options", "least"), [
    ("topk", {}, 0.97), ("batch_topk", {}, 0.97), ("nested_dictionary", {"prefixes": [32, 64]}, 0.8),
])  # fmt: skip
def test_training_finds_a_planted_dictionary(arch, options, least, engine):
    """The bounds of `tests/training`; a nested one shares early latents among atoms."""
    truth = planted(32, 64, 3)
    x, _ = truth.sample(40_000)
    sae = vlsae.train(x, arch, device=DEVICE, engine=engine, **RECIPE, **options)
    assert matched_cosine(truth.atoms, sae.atoms.cpu()).mean() >= least


def test_a_run_there_is_stored_continued_and_opened_here(tmp_path, capsys):
    x, _ = planted(16, 32, 2).sample(4000)
    torch.save(x, tmp_path / "x.pt")
    options = {"n_latents": 32, "k": 2, "batch_size": 128, "progress": False}
    whole = vlsae.train(x, "topk", device=DEVICE, out=tmp_path / "run", steps=40, **options)
    again = vlsae.train(x, "topk", device=DEVICE, out=tmp_path / "run", steps=40, **options)
    opened = vlsae.load_dictionary(tmp_path / "run", device=DEVICE)
    assert torch.equal(whole.W_dec.cpu(), again.W_dec.cpu()) and torch.equal(opened.W_dec.cpu(), whole.W_dec.cpu())
    close(vlsae.load_dictionary(tmp_path / "run").encode(x), opened.encode(x.to(DEVICE)))


@pytest.mark.parametrize("fixture", ["saelens/jumprelu", "sparsify/layers.5", "dictionary_learning/AutoEncoderTopK"])
def test_dictionaries_of_others(fixture):
    from safetensors.torch import load

    folder = FIXTURES / fixture
    expected = load((folder / "expected.st").read_bytes())
    sae = vlsae.load_dictionary(folder, device=DEVICE, model="unknown", site="unknown")
    close(sae.encode(expected["x"].to(DEVICE)), expected["codes"])


def test_a_model_and_what_is_read_of_it(tiny, there, pictures, trained, tmp_path):
    """Twelve layers of sums: 1e-4. In bfloat16 (8 bits) cosines of embeddings stay above .99."""
    close(there.tokens(pictures, SITE), tiny.tokens(pictures, SITE), 1e-4)
    close(there.encode_image(pictures), tiny.encode_image(pictures), 1e-4)
    close(there.encode_text(["a red cat"]), tiny.encode_text(["a red cat"]), 1e-4)
    half = vlsae.load_model("tiny", DEVICE, precision="bfloat16").encode_image(pictures)
    assert (half.float().cpu() * tiny.encode_image(pictures)).sum(1).min() > 0.99
    stores = [vlsae.extract(model, pictures, out=tmp_path / name, site=SITE, batch_size=4, progress=False)
              for model, name in ((there, "there"), (tiny, "here"))]  # fmt: skip
    found = [vlsae.latent_statistics(trained.to(device), store, progress=False)
             for device, store in zip((DEVICE, "cpu"), stores)]  # fmt: skip
    counts = [statistics.token_count for statistics in found]
    assert counts[1].sum() > 0 and np.abs(counts[0] - counts[1]).max() <= 2  # a token at the k-th place may change
    latent = int(counts[1].argmax())
    maps = [vlsae.heatmap(model, trained.to(model.device), pictures[0], latent) for model in (there, tiny)]
    assert np.nanmax(np.abs(maps[0] - maps[1])) <= 1e-3 * np.nanmax(maps[1]) and np.nanmax(maps[1]) > 0


@pytest.mark.parametrize(
    "method", [name for name in SOLVERS if "device" in inspect.signature(SOLVERS.get(name)).parameters]
)
def test_splice_solvers(method):
    Z, C = problem()
    check(solve(Z, C, 0.25, method=method, device=DEVICE), Z, C, 0.25)


@pytest.mark.parametrize("method", list(ADAPTATIONS))
def test_adaptations(tiny, there, pictures, method):
    """The same parameters around both models give the same embeddings."""
    names, labels = ["cat", "dog", "bus"], torch.tensor([0, 1, 2])
    features = tiny.encode_image(pictures[:3])
    adapted = []
    for model in (tiny, there):
        adaptation = ADAPTATIONS.get(method)(model, names)
        if "vision" not in adaptation.changes:
            adaptation.prepare(features.to(model.device), labels.to(model.device))
        adapted.append(AdaptedBackbone(model, adaptation.to(model.device)))
    adapted[1].adaptation.load_state_dict(adapted[0].adaptation.state_dict())
    close(adapted[1].encode_image(pictures[:3]), adapted[0].encode_image(pictures[:3]), 1e-4)
    tuned = vlsae.adapt(
        there, pictures[:6], method, labels=[0, 1, 2, 0, 1, 2], class_names=names, shots=2, progress=False
    )
    assert torch.isfinite(tuned.encode_image(pictures[:2])).all()


def test_compare_and_the_doctor(tiny, there, pictures, trained):
    labels = [i % 3 for i in range(len(pictures))]
    tables = []
    for model in (tiny, there):
        sae = trained.to(model.device)
        adapted = vlsae.load_adapted(model, Path(vlsae.__file__).parent / "world" / "tiny_maple")
        found = vlsae.compare(model, adapted, sae, pictures, labels=labels, class_names=["a", "b", "c"], progress=False,
                              n_boot=20, curves=False)  # fmt: skip
        seen = examine(sae, model, pictures, n_images=12, progress=False)
        tables.append((found.summary(), seen.metrics["ev_centred"].value, seen.fits))
    assert tables[0][1] == pytest.approx(tables[1][1], abs=1e-3) and tables[0][2] == tables[1][2]


def test_the_commands(tmp_path, pictures):
    for i, picture in enumerate(pictures):
        picture.image.save(tmp_path / f"{i}.png")
    images, store, run = str(tmp_path), str(tmp_path / "store"), str(tmp_path / "run")
    there = ["--json", "--device", DEVICE, "--out"]
    small = ["--family", "topk", "--n-latents", "64", "--k", "8", "--steps", "30"]
    assert main(["extract", images, "--model", "tiny", "--site", SITE, *there, store]) == 0
    assert main(["train", "--data", store, *small, *there, run]) == 0
    assert main(["doctor", run, "--model", "tiny", "--data", images, *there, str(tmp_path / "d.json")]) in (0, 1)
    assert isinstance(vlsae.load_dictionary(run), TopKDictionary)
