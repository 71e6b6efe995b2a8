"""The doctor on a dictionary that fits, and on the same one with each fault that users bring: found by name."""

import copy
import json

import pytest
import torch

from vlsae import train
from vlsae.cli import main
from vlsae.dictionaries.batch_topk import BatchTopKDictionary
from vlsae.dictionaries.jumprelu import JumpReLUDictionary
from vlsae.dictionaries.projection import ProjectionDictionary
from vlsae.dictionaries.topk import TopKDictionary
from vlsae.dictionaries.transcoder import Transcoder
from vlsae.dictionaries.transform import InputTransform
from vlsae.interop.dialect import DIALECTS, Dialect
from vlsae.interop.doctor import examine
from vlsae.interop.examination import fit as fit_module
from vlsae.interop.examination.fit import Sums, fit
from vlsae.interop.examination.roles import probe_places
from vlsae.interop.examination.tokens import sample_inputs
from vlsae.interop.examination.trials import trials
from vlsae.world import scenes

RECIPE = {"batch_size": 256, "lr": 2e-3, "engine": "torch", "progress": False}
N = 6  # images a diagnosis
OWN = "vision.4.resid_post"  # where the shared store was taken, by its non-negative number


@pytest.fixture(scope="module")
def trained(store):
    return train(store, "topk", n_latents=256, k=8, steps=300, **RECIPE)


@pytest.fixture
def sae(trained):
    return copy.deepcopy(trained)


@pytest.fixture(scope="module")
def images():
    """Of the store, since what is fitted to a thousand tokens need not fit others."""
    return scenes(24, seed=5)


@pytest.fixture
def held(tiny, images):
    """Examine on the tiny CLIP."""
    return lambda dictionary, **options: examine(
        dictionary, tiny, images, **{"n_images": N, "progress": False, **options}
    )


def seen_tokens(tiny, images):
    """The patches that a diagnosis sees."""
    return tiny.tokens(sample_inputs(images, N, seed=0), OWN)[:, 1:].flatten(0, 1)


def about(diagnosis, severity):
    return {finding.about for finding in diagnosis.findings if finding.severity == severity}


def test_a_dictionary_fits_where_it_was_trained(sae, held, tiny, images):
    """Best of all sites at its own block, and the number is the definition computed once more in one piece."""
    found = held(sae)
    assert found.fits and found.site == OWN and not about(found, "warning") - {"dead"}
    assert max(found.sites, key=lambda row: row.ev).name == OWN
    assert found.trials[0].name == "as it is"
    x = seen_tokens(tiny, images).double()
    xhat = sae(x.float()).double()
    ev = 1 - (x - xhat).square().sum() / (x - x.mean(0)).square().sum()
    assert found.metrics["ev_centred"].value == pytest.approx(float(ev), abs=1e-5)  # float32 in another order
    low, high = found.metrics["ev_centred"].ci
    assert low < ev < high
    z = sae.encode(x.float())
    assert found.metrics["dead"].value == float((z == 0).all(0).double().mean())
    assert found.metrics["l0"].value == float((z != 0).sum(1).double().mean())
    assert "It fits" in found.verdict and found.verdict in found.summary().replace("\n", " ")


def test_a_whole_basis_explains_everything(held):
    """k = d coordinates of an orthonormal basis: xhat = x up to rounding, so EV is 1 at every site."""
    found = held(ProjectionDictionary(192, 192, k=192), site="vision.0.resid_post", tokens="patches")
    assert found.fits and found.metrics["ev_centred"].value == pytest.approx(1, abs=1e-6)
    assert found.metrics["stretch"].value == pytest.approx(1, abs=1e-6)
    assert found.metrics["l0"].value == 192 and all(row.ev > 1 - 1e-5 for row in found.sites)
    assert 0.3 < found.metrics["negative"].value < 0.7 and found.finding("signs").severity == "ok"


def test_the_interval_is_of_images():
    """Two images whose errors and spreads are known by hand, weighed as a bootstrap sample weighs them."""
    x = torch.tensor([[[1.0], [-1.0]], [[3.0], [-3.0]]])
    sums = Sums.of(x, x.square().sum(-1))  # xhat = 0
    assert sums.ev()[0] == 0  # the mean is 0, so answering 0 is answering with the mean
    sums = Sums.of(x, torch.tensor([[0.0, 0.0], [9.0, 9.0]]))  # the second image is lost: 18 of 20
    assert sums.ev()[0] == pytest.approx(1 - 18 / 20, abs=1e-12)
    ev = sums.ev(torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]]).numpy())
    assert ev == pytest.approx([1, 0, 0.1], abs=1e-12)


@torch.no_grad()
def test_blocks_of_tokens_change_nothing(monkeypatch, tiny):
    """In float64, where 9 tokens a block or all at once differ by rounding alone: 4e-16 a sum of 192 x 90 terms."""
    x = tiny.tokens(scenes(3, seed=7), OWN)[:, :30].double()
    mean = x.mean((0, 1)).float()
    families = (TopKDictionary(192, 300, k=9), JumpReLUDictionary(192, 300), ProjectionDictionary(192, 192, k=9))
    for dictionary in families:
        if dictionary.family != "projection":
            dictionary.b_dec.data.copy_(mean)
        if dictionary.family == "jumprelu":
            dictionary.threshold.data.copy_(torch.linspace(1, 40, 300))
        found = []
        for block in (9 * 300, 2**24):
            monkeypatch.setattr(fit_module, "BLOCK", block)
            found.append(fit(dictionary.double(), x))
        parts, whole = found
        assert torch.equal(parts.l0, whole.l0) and torch.equal(parts.fired, whole.fired)
        assert parts.ev == pytest.approx(whole.ev, rel=1e-12) and parts.negative == whole.negative
        assert parts.stretch == pytest.approx(whole.stretch, rel=1e-12)
        xhat = dictionary(x)
        r, centred = (values.flatten(0, 1) - values.mean((0, 1)) for values in (xhat, x))
        assert whole.stretch == pytest.approx(float(r.square().sum() / (centred * r).sum()), rel=1e-12)
        assert whole.ev == pytest.approx(float(1 - (x - xhat).square().sum() / centred.square().sum()), rel=1e-12)


@pytest.mark.parametrize("block", [2**16, 2**24])
def test_no_table_of_all_tokens_and_latents_is_made(monkeypatch, block):
    """Families without a search in blocks make all pre-activations of the tokens they get: never more than `BLOCK`."""
    monkeypatch.setattr(fit_module, "BLOCK", block)
    sizes, activate = [], JumpReLUDictionary.activate
    monkeypatch.setattr(
        JumpReLUDictionary, "activate", lambda self, pre: sizes.append(pre.numel()) or activate(self, pre)
    )
    wide = JumpReLUDictionary(8, 2**13)
    wide.threshold.data.copy_(torch.linspace(0.1, 2, 2**13))
    x = torch.randn(4, 2**10, 8, generator=torch.Generator().manual_seed(0))
    for reconstruct in (None, *(trial.reconstruct for trial in list(trials(wide, x[0]))[:3])):
        fit(wide, x, reconstruct)
    assert max(sizes) == block and sum(sizes) == 4 * x[..., 0].numel() * 2**13


def test_another_block(sae, held):
    found = held(sae, site="vision.1.resid_post")
    assert not found.fits and found.finding("site").severity == "wrong"
    assert f"It fits best at {OWN}" in found.finding("site").text and f"at {OWN}" in found.verdict


def test_a_forgotten_site_is_found(sae, held):
    del sae.metadata["site"]
    found = held(sae)
    assert found.site == OWN and found.fits
    assert "Nothing says at which site" in found.finding("site").text


def test_sites_that_do_not_exist_or_have_another_width(sae, held):
    found = held(sae, site="vision.13.resid_post")
    assert not found.fits and "blocks of tiny are 0 to 5, or -6 to -1" in found.finding("site").text
    assert found.verdict == "It does not fit tiny: vision.13.resid_post does not exist."
    found = held(TopKDictionary(8, 16, k=2), site="vision.-2.resid_post")
    assert "width 8, but vision.4.resid_post of tiny has 192" in found.verdict
    assert "no site of tiny" in found.finding("width").text
    found = held(TopKDictionary(128, 16, k=2), site="vision.-2.resid_post")
    assert not found.fits and "text.0..1.resid_pre" in found.finding("width").text  # its text tower is narrower
    with pytest.raises(ValueError, match="does not exist; write TOWER.BLOCK.STREAM"):
        held(sae, site="blocks.3.hook_resid_post")


@pytest.mark.parametrize("factor", [0.25, 10])
def test_a_wrong_input_scale(sae, held, factor):
    """Weights for inputs of another scale: what undoes it is named, and gives the fit back."""
    before = held(sae).metrics["ev_centred"].value
    sae.fold_scale(1 / factor)  # expects `factor` times its tokens
    found = held(sae)
    assert not found.fits or found.finding("input").severity != "ok"
    assert f"with input times {factor:g}" in found.finding("input").text
    best = next(row for row in found.trials if row.name == f"input times {factor:g}")
    assert best.ev == pytest.approx(before, abs=0.03)  # on 8 of 64 patches


@pytest.mark.parametrize("kind", ["layer_norm", "sqrt_d"])
def test_a_forgotten_transform(store, held, kind):
    """Trained behind a transform that the file lost: it is named, and with the site where that is wrong too."""
    sae = train(store, "topk", n_latents=128, k=8, steps=200, input_transform=kind, **RECIPE)
    assert held(sae).fits
    sae.transform = InputTransform(192)
    found = held(sae)
    assert not found.fits and found.finding("input").severity == "wrong"
    assert f"({kind})" in found.finding("input").text
    if kind == "layer_norm":
        found = held(sae, site="vision.1.resid_post")
        assert f"at {OWN} with each token layer-normed" in found.finding("site and input").text


def test_a_lost_decoder_bias(sae, held):
    """Without b_dec the mean is neither taken off nor given back; centred tokens are what is left to it."""
    sae.b_dec.zero_()
    found = held(sae)
    assert not found.fits
    assert "The decoder's bias is 0" in found.finding("origin").text
    assert "(centre)" in found.finding("input").text


def test_an_encoder_without_the_decoder_bias(sae, held):
    """Some libraries do not take b_dec off before the encoder; the file looks the same."""
    sae.b_enc.add_(
        sae.b_dec @ sae.W_enc
    )  # now (x - b_dec) W_enc + b_enc is what the file's x W_enc + b_enc was meant for
    found = held(sae)
    assert found.trials[0].name == "b_dec taken off twice"


@pytest.mark.parametrize("k", [64, 1])
def test_another_k(sae, held, k):
    sae.k = k
    found = held(sae)
    assert "trained with k=8" in found.finding("sparsity").text and found.finding("sparsity").severity == "warning"
    assert found.finding("k").severity == "warning" and "with k=8" in found.finding("k").text


def test_k_of_a_batch_behind_a_threshold(sae, held, tiny, images):
    """A threshold that leaves about 8 active, and a k that says 8, 40 or 250: mean over tokens, too high, of a batch."""
    batch = BatchTopKDictionary(192, 256, k=8)
    batch.load_state_dict({**sae.state_dict(), "threshold": torch.zeros(256)})
    batch.metadata = {"site": OWN, "tokens": "patches"}
    pre = batch.pre(seen_tokens(tiny, images))
    batch.threshold.fill_(pre.flatten().sort(descending=True).values[8 * len(pre)])
    assert held(batch).finding("sparsity").severity == "ok"
    batch.k = 40
    assert held(batch).finding("sparsity").severity == "warning"
    batch.k = 250
    found = held(batch).finding("sparsity")
    assert found.severity == "wrong" and "whole batch" in found.text
    batch.k = 8
    batch.threshold.mul_(1000)
    found = held(batch)
    assert found.finding("silence").severity == "wrong" and found.finding("dead").severity == "wrong"


def test_shuffled_rows_and_coordinates(sae, held):
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    rows = copy.deepcopy(sae)
    rows.W_dec.copy_(sae.W_dec[order])
    found = held(rows)
    assert found.finding("pairing").severity == "wrong" and "do not belong together" in found.finding("pairing").text
    order = torch.randperm(192, generator=torch.Generator().manual_seed(0))
    sae.W_dec.copy_(sae.W_dec[:, order])
    sae.W_enc.copy_(sae.W_enc[order])
    found = held(sae)  # encoder and decoder agree, the model does not
    assert found.finding("pairing").severity == "ok"
    assert found.finding("variance").severity == "wrong" and "fits best" not in found.verdict


def test_planted_dead_latents_are_counted(sae, held, tiny, images):
    """Latents whose bias no token overcomes never fire: 100 of them and those that were silent anyway."""
    before = held(sae).metrics["dead"].value
    x = seen_tokens(tiny, images)
    alive = (sae.encode(x) != 0).any(0)
    sae.b_enc[:100] -= 1e6
    again = (sae.encode(x) != 0).any(0)  # others take their places
    found = held(sae)
    assert not again[:100].any() and alive.double().mean() == 1 - before
    assert found.metrics["dead"].value == pytest.approx(1 - float(again.double().mean()), abs=1e-12)
    sae.b_enc[:200] -= 1e6
    assert found.metrics["dead"].n == N * 64
    assert held(sae).finding("dead").severity == "warning"


def test_scaled_atoms(sae, held):
    """Codes and atoms scaled against each other leave the reconstruction; atoms alone stretch it."""
    factors = torch.linspace(0.5, 3, 256)[:, None]
    relu = JumpReLUDictionary(192, 256)
    relu.load_state_dict({**sae.state_dict(), "threshold": torch.zeros(256)})
    relu.W_dec.data.mul_(factors)
    assert held(relu, site=OWN).metrics["atom_norm_max"].value == pytest.approx(3, abs=1e-5)
    sae.W_dec.mul_(3)
    found = held(sae)
    assert "between 3 and 3" in found.finding("norms").text and found.finding("norms").severity == "warning"
    assert found.finding("lengths").severity == "warning"
    assert found.metrics["stretch"].value > 2.5


def test_kinds_of_token_apart(store, sae, held):
    """A dictionary of patches whose file does not say so is judged on patches, and CLS stands beside it."""
    del sae.metadata["tokens"]
    found = held(sae)
    rows = {row.name: row for row in found.tokens}
    assert set(rows) == {"cls", "patch"} and rows["cls"].n == N and rows["patch"].n == N * 64
    assert rows["patch"].ev > rows["cls"].ev and "judged on patch tokens" in found.finding("tokens").text


def test_another_model(sae, held, tiny16, images):
    sae.metadata["weight_hash"] = "0" * 16
    assert held(sae).finding("model").severity == "warning"
    found = examine(sae, tiny16, images, site="vision.2.resid_post", n_images=4, progress=False)
    assert not found.fits and "width 192, but vision.2.resid_post of tiny16 has 104" in found.verdict


def test_pooled_embeddings_of_images_and_texts(tiny, held):
    whole = ProjectionDictionary(192, 192, k=192)
    assert [row.name for row in held(whole, site="vision.pooled").tokens] == ["pooled"]
    found = examine(whole, tiny, ["a cat", "a dog", "a red car"], site="text.pooled", progress=False)
    assert found.metrics["ev_centred"].value == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="text.pooled"):
        held(whole, site="text.0.resid_post")


def test_bad_arguments(sae, held):
    with pytest.raises(ValueError, match="n_images=1"):
        held(sae, n_images=1)
    with pytest.raises(ValueError, match="tokens='patch'"):
        held(sae, tokens="patch")
    with pytest.raises(ValueError, match="does not reconstruct what it reads"):
        held(Transcoder(192, 256, k=8))


def test_a_diagnosis_is_json(sae, held, tmp_path):
    sae.W_dec.zero_()
    found = held(sae)
    data = json.loads(found.save(tmp_path / "d" / "diagnosis.json").read_text())
    assert (
        data["fits"] is False
        and data["metrics"]["stretch"]["value"] is None
        and data["findings"][0]["severity"] == "wrong"
    )


def test_the_command(sae, images, tmp_path, capsys):
    """Exit code 0 where it fits and 1 where not; tables and words, or JSON."""
    for i in range(4):
        (tmp_path / "photos").mkdir(exist_ok=True)
        images[i].image.save(tmp_path / "photos" / f"{i}.png")
    sae.save(tmp_path / "sae")
    command = ["doctor", str(tmp_path / "sae"), "--model", "tiny", "--data", str(tmp_path / "photos"),
               "--out", str(tmp_path / "d.json")]  # fmt: skip
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "It fits vision.4.resid_post of tiny" in text and max(map(len, text.splitlines())) <= 120
    assert main([*command, "--site", "vision.1.resid_post", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["fits"] is False and data == {
        "diagnosis": str(tmp_path / "d.json"),
        **json.loads((tmp_path / "d.json").read_text()),
    }
    assert main([*command, "--set", "k=3"]) == 2
    assert "takes no k" in capsys.readouterr().err


def test_a_foreign_file_opens_in_every_command(sae, store, tmp_path, monkeypatch, capsys):
    """`vlsae stats` on a dictionary of another project, which says all that is needed."""

    class Other(Dialect):
        name, project = "other", "Other"

        def sniff(self, source):
            return source.has("mine")

        def read(self, source, answers):
            answers.settle()
            found = copy.deepcopy(sae)
            found.W_enc.copy_(source.tensor("mine"))
            return found

    DIALECTS._discover()
    monkeypatch.setitem(DIALECTS._parts, "other", Other)
    torch.save({"mine": sae.W_enc.data.clone()}, tmp_path / "ae.pt")
    command = [
        "stats",
        "--data",
        str(store.path),
        "--dictionary",
        str(tmp_path / "ae.pt"),
        "--out",
        str(tmp_path / "s"),
        "--json",
    ]
    assert main(command) == 0
    alive = (sae.encode(torch.cat([x.flatten(0, 1) for _, x in store.batches(8)])) > 0).any(0)
    assert json.loads(capsys.readouterr().out)["alive"] == int(alive.sum())


def test_what_is_compared_stays_small():
    """Whatever the number of images: 8 patches of each, fewer of many, CLS always; and the same ones for a seed."""
    roles = ["cls"] + ["patch"] * 196
    assert [len(probe_places(roles, n, seed=0)) for n in (2, 128, 256, 5000)] == [9, 9, 5, 2]
    assert 0 in probe_places(roles, 64, seed=1) and probe_places(roles, 64, 1) == probe_places(roles, 64, 1)
