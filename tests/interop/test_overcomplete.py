"""The dialect overcomplete: what is asked, what is refused and why, and the way back."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vlsae.dictionaries.archetypal import ArchetypalDictionary
from vlsae.interop.dialect import DIALECTS, DialectError
from vlsae.interop.load import load_dictionary
from vlsae.interop.overcomplete_layers import span_positively
from vlsae.interop.source import Source

FIXTURES = Path(__file__).parent / "fixtures"
D, N = 6, 20
UNKNOWN = {"model": "unknown", "site": "unknown"}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def state(**more):
    """A state dict of an SAE with atoms a little off unit norm, as after a step."""
    atoms = F.normalize(draw(N, D, seed=1), dim=1) * torch.linspace(0.98, 1.02, N)[:, None]
    return {
        "encoder.final_block.0.weight": draw(N, D, seed=2),
        "encoder.final_block.0.bias": draw(N, seed=3),
        "dictionary._weights": atoms,
        "dictionary.multiplier": torch.tensor(0.0),
    } | more


def opened(tmp_path, content, **answers):
    torch.save(content, tmp_path / "model.pt")
    return load_dictionary(tmp_path / "model.pt", **UNKNOWN | answers)


def refused(tmp_path, content, match, **answers):
    with pytest.raises(DialectError, match=match):
        opened(tmp_path, content, **answers)


def without(found, *starts):
    return {name: value for name, value in found.items() if not name.startswith(starts)}


def test_all_open_questions_come_in_one_message(tmp_path):
    torch.save(state(), tmp_path / "model.pt")
    with pytest.raises(DialectError) as found:
        load_dictionary(tmp_path / "model.pt")
    for asked in ("model=...", "site=...", "of width 6", "family=...", "relu (SAE)", "RATopKSAE", "k=...", "1 to 20"):
        assert asked in str(found.value)
    refused(tmp_path, state(), "(?s)k=.*whole batch.*threshold=", family="batch_topk")
    refused(tmp_path, state(), "takes no k", family="relu", k=3)
    refused(tmp_path, state(), "family='gated' cannot be", family="gated")


@pytest.mark.parametrize("k", [0, N + 1, 2.5, True, "3"])
def test_k_is_a_number_of_latents(tmp_path, k):
    refused(tmp_path, state(), "whole number, at least 1 and at most 20", family="topk", k=k)


def test_what_a_pickle_says_cannot_be_contradicted():
    with pytest.raises(DialectError, match="says k=4"):
        load_dictionary(FIXTURES / "overcomplete/topk-pickle", **UNKNOWN, k=5)
    with pytest.raises(DialectError, match="says family='topk'"):
        load_dictionary(FIXTURES / "overcomplete/topk-pickle", **UNKNOWN, family="relu")


def test_a_threshold_keeps_codes_that_are_equal_to_it(tmp_path):
    """Theirs is `>=`: of an input whose pre-activation is exactly the threshold the code survives, of the next one not."""
    x = torch.eye(D)[:1]
    for threshold, kept in ((1.5, True), (float(torch.nextafter(torch.tensor(1.5), torch.tensor(2.0))), False)):
        weights = torch.zeros(N, D)
        weights[0, 0] = 1.5
        found = state(**{"encoder.final_block.0.weight": weights, "encoder.final_block.0.bias": torch.zeros(N)})
        batch = opened(tmp_path, found, family="batch_topk", k=2, threshold=threshold)
        assert bool(batch.encode(x)[0, 0]) is kept
    for threshold in (0.0, -1.0):  # then only the ReLU is left
        batch = opened(tmp_path, found, family="batch_topk", k=2, threshold=threshold)
        assert torch.equal(batch.encode(draw(9, D)), opened(tmp_path, found, family="relu").encode(draw(9, D)))
        assert (batch.threshold == 0).all()
    refused(tmp_path, found, "threshold=nan is no answer.*finite number", family="batch_topk", k=2, threshold=math.nan)


def test_thresholds_are_logarithms(tmp_path):
    logs = torch.linspace(-2, 1, N)
    jump = opened(tmp_path, state(thresholds=logs))
    assert jump.family == "jumprelu" and jump.threshold.allclose(logs.exp(), rtol=1e-6)
    x = draw(30, D, seed=5)
    pre = x @ state()["encoder.final_block.0.weight"].T + state()["encoder.final_block.0.bias"]
    assert jump.encode(x).allclose(pre * (pre >= logs.exp()), atol=1e-5)


def test_the_batch_of_a_pickled_batch_topk_is_not_its_k():
    facts = json.loads((FIXTURES / "overcomplete/batch-topk-pickle/case.json").read_text())["answers"]
    assert set(facts) == {"k"}  # the threshold is in the pickle
    with pytest.raises(DialectError, match=r"top_k \(256\) counts over a whole batch"):
        load_dictionary(FIXTURES / "overcomplete/batch-topk-pickle", **UNKNOWN)


def test_atoms_are_normalised_as_the_layer_does(tmp_path):
    weights = state()["dictionary._weights"]
    near = opened(tmp_path, state(), family="relu")
    assert near.W_dec.norm(dim=1).allclose(torch.ones(N), atol=1e-6)
    assert "0.98 to 1.02" in near.metadata["notes"][0]
    assert torch.equal(opened(tmp_path, state(), family="relu", normalization="identity").W_dec, weights)
    far = state(**{"dictionary._weights": 3 * weights, "dictionary.multiplier": torch.tensor(0.5)})
    refused(tmp_path, far, r"(?s)norms are 2.94 to 3.06.*max_l1", family="relu")
    scale = math.exp(0.5)
    for how, expected in {
        "l2": F.normalize(weights, dim=1),
        "l1": F.normalize(weights, p=1, dim=1),
        "max_l2": weights / weights.norm(dim=1).max(),
        "max_l1": weights / weights.norm(p=1, dim=1).max(),
        "identity": 3 * weights,
    }.items():
        found = opened(tmp_path, far, family="relu", normalization=how)
        assert found.W_dec.allclose(expected * scale, rtol=1e-5, atol=1e-7)
    refused(tmp_path, far, "expected one of l2", family="relu", normalization="l3")
    refused(tmp_path, far, "cannot be unknown", family="relu", normalization="unknown")
    for multiplier in (torch.tensor(100.0), torch.ones(N)):
        refused(tmp_path, state(**{"dictionary.multiplier": multiplier}), "dictionary.multiplier is", family="relu")


def test_checkpoints_wrap_state_dicts_in_many_ways(tmp_path):
    x = draw(5, D)
    plain = opened(tmp_path, state(), family="relu").encode(x)
    parallel = {f"module.{name}": value for name, value in state().items()}
    for content in (parallel, {"state_dict": state(), "step": 7}, {"run": {"sae": parallel}, "loss": 0.5}):
        assert torch.equal(opened(tmp_path, content, family="relu").encode(x), plain)
    assert opened(tmp_path, {"sae": state(), "step": 7}, family="relu").metadata["step"] == 7
    refused(tmp_path, {"sae": state(), "ema": state()}, "2 models .*'sae.', 'ema.'", family="relu")


def test_relaxations_are_cut_to_their_bound(tmp_path):
    """A file of training may hold mixtures off the simplex and relaxations that are too long; a zero one stays zero."""
    relax = draw(N, D, seed=4)
    relax[0] = 0
    mixture = draw(N, 9, seed=5)
    layer = {"dictionary.W": mixture, "dictionary.C": draw(9, D, seed=6), "dictionary.Relax": relax}
    found = without(state(), "dictionary._") | layer
    refused(tmp_path, found, "delta=...: the bound", family="topk", k=3)
    refused(tmp_path, found, "delta=-1 is no answer.*at least 0", family="topk", k=3, delta=-1)
    sae = opened(tmp_path, found, family="topk", k=3, delta=0.5)
    assert isinstance(sae, ArchetypalDictionary) and sae.relaxation.norm(dim=1)[1:].allclose(torch.tensor(0.5))
    assert sae.mixture.min() >= 0 and sae.mixture.sum(1).allclose(torch.ones(N)) and (sae.relaxation[0] == 0).all()
    before = sae.W_dec.clone()
    sae.constrain()
    assert sae.W_dec.allclose(before, atol=1e-6)
    fused = opened(tmp_path, found, family="relu", delta=0.5)
    assert fused.family == "relu" and fused.W_dec.allclose(sae.W_dec, atol=1e-6)
    refused(tmp_path, found | {"dictionary.C": draw(8, D)}, "expected .* .candidates, d.", family="relu", delta=0.5)


BLOCK = "encoder.final_block.1"


@pytest.mark.parametrize(
    "more, match",
    [
        ({f"{BLOCK}.weight": torch.ones(N), f"{BLOCK}.bias": torch.zeros(N)}, "layer norm"),
        ({"encoder.mlp_blocks.0.0.weight": torch.eye(D)}, "hidden layers"),
        ({"encoder.resnet_blocks.0.conv1.weight": torch.ones(D, D, 3, 3)}, "convolutions"),
        ({"encoder.attention_blocks.0.attn.in_proj_weight": torch.ones(3 * D, D)}, "attention between tokens"),
        ({"encoder.gate": torch.ones(N)}, "a part named 'gate'"),
        ({"Q": torch.linspace(0, 1, 4)}, "QSAE"),
        ({"encoder.final_block.0.bias": torch.zeros(D)}, r"bias \[6\]; expected"),
        ({"encoder.final_block.0.weight": torch.tensor(1.0)}, r"weights \[\] and a bias \[20\]; expected"),
        ({"dictionary._weights": torch.ones(N, D, 1)}, r"expected \[n_latents, d\]"),
    ],
)
def test_models_that_no_family_computes_are_refused(tmp_path, more, match):
    refused(tmp_path, state(**more), match, family="relu")


def test_a_batch_norm_must_fit_its_encoder(tmp_path):
    norm = {f"{BLOCK}.{name}": torch.ones(N) for name in ("weight", "bias", "running_mean", "running_var")}
    assert opened(tmp_path, state(**norm), family="relu").family == "relu"
    refused(tmp_path, state(**norm | {f"{BLOCK}.running_var": -torch.ones(N)}), "negative variance", family="relu")
    refused(tmp_path, state(**norm | {f"{BLOCK}.weight": torch.ones(3)}), "four vectors of 20", family="relu")


def test_pursuit_is_read_where_ours_takes_the_same_steps(tmp_path):
    found = without(state(), "encoder")
    refused(tmp_path, found, r"(?s)matching_pursuit \(MpSAE\), omp \(OMPSAE\)")
    sae = opened(tmp_path, found, family="matching_pursuit", k=3)
    x = draw(4, D, seed=8)
    atoms, rest, z = sae.W_dec.detach(), x.clone(), torch.zeros(4, N)
    for _ in range(3):  # their loop: the largest signed correlation
        value, j = (rest @ atoms.T).max(1)
        z[torch.arange(4), j] += value
        rest -= value[:, None] * atoms[j]
    assert sae.encode(x).allclose(z, atol=1e-6)
    refused(tmp_path, found, "from k=2 on", family="omp", k=3)
    doubled = found | {"dictionary.multiplier": torch.tensor(math.log(2))}
    refused(tmp_path, doubled, "norms from 2 to 2", family="matching_pursuit", k=3)
    half = found | {"dictionary._weights": found["dictionary._weights"].abs()}  # -1 lies against all of them
    refused(tmp_path, half, "negative correlations", family="matching_pursuit", k=3)


def test_positive_spans():
    """A simplex with 0 inside spans; an orthant does not; neither do atoms on one side of a plane, by however little."""
    assert span_positively(torch.cat([torch.eye(4), -torch.ones(1, 4)]))
    assert not span_positively(torch.eye(4))
    assert not span_positively(torch.cat([draw(50, 3), torch.full((50, 1), 0.01)], 1))
    assert span_positively(
        torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    )  # along (0, 1) every correlation is 0, none is negative


def test_strange_content_is_not_recognised_and_raises_nothing(tmp_path):
    for content in ({"dictionary": 3}, [1, 2], {"dictionary._weights": "text"}, {"dictionary.W": torch.ones(2, 2)}):
        torch.save(content, tmp_path / "model.pt")
        assert not DIALECTS.get("overcomplete")().sniff(Source(tmp_path / "model.pt"))


@pytest.mark.parametrize("name", ["b_dec", "dictionary.bias", "running_mean", "encoder.tied_to.bias"])
def test_tensors_that_no_release_has_are_refused(tmp_path, name):
    """Their own strict `load_state_dict` refuses them too; a fork's decoder bias would be lost."""
    refused(tmp_path, state(**{name: torch.ones(N)}), f"also holds {name}", family="relu")


def test_the_encoder_of_a_first_release_may_be_its_mlp(tmp_path):
    """Release 0.0.2 named the atoms `dictionary.dictionary` whatever the encoder was, and did not normalise them."""
    old = without(state(), "dictionary") | {"dictionary.dictionary": 3 * draw(N, D, seed=9)}
    sae = opened(tmp_path, old, family="relu")
    assert torch.equal(sae.W_dec, old["dictionary.dictionary"]) and sae.metadata["normalization"] == "identity"
    refused(tmp_path, old, "says normalization='identity'", family="relu", normalization="l2")
