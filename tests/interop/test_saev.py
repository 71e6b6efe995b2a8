"""saev: every fact that its files leave open is asked for, its traps are told apart, and what it writes is what it reads."""

import io
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from vlsae.dictionaries import DICTIONARIES
from vlsae.dictionaries.transform import InputTransform
from vlsae.interop.dialect import DialectError
from vlsae.interop.dialects.saev import Saev
from vlsae.interop.load import load_dictionary
from vlsae.interop.source import Source

FIXTURES = Path(__file__).parent / "fixtures" / "saev"
WHO = {"model": "unknown", "site": "unknown"}
RAW = {"mean": 0, "scale": 1}
D, N = 8, 32


def opened(case, **answers):
    facts = json.loads((FIXTURES / case / "case.json").read_text())
    return load_dictionary(FIXTURES / case, **WHO | facts["answers"] | answers)


def expected(case):
    return load((FIXTURES / case / "expected.st").read_bytes())


def edited(case, folder, change):
    """A copy of a case's file whose header went through `change`."""
    line, weights = (FIXTURES / case / "sae.pt").read_bytes().split(b"\n", 1)
    header = json.loads(line)
    changed = change(header) or header
    (folder / "sae.pt").write_bytes(json.dumps(changed).encode() + b"\n" + weights)
    return folder


def made(family, seed=0, **settings):
    """One of our dictionaries with biases that matter."""
    sae = DICTIONARIES.get(family)(D, N, seed=seed, **settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        sae.b_enc.copy_(0.3 * torch.randn(N, generator=generator))
        sae.b_dec.copy_(0.5 + torch.randn(D, generator=generator))
        if hasattr(sae, "threshold"):
            sae.threshold.fill_(0.4)
    return sae


def test_the_first_files_ask_for_what_training_did_to_the_data():
    with pytest.raises(DialectError) as error:
        load_dictionary(FIXTURES / "no_schema")
    message = str(error.value)
    assert all(f"\n  {name}=...: " in message for name in ("model", "site", "mean", "scale"))
    assert "subtract_b_dec" not in message and "k=..." not in message
    for wrong in ([1.0] * 7, 3.0, "mean.pt", [float("nan")] * D):
        with pytest.raises(DialectError, match="give 8 numbers, or 0 for none"):
            opened("no_schema", mean=wrong)
    for wrong in ("1", float("inf"), [1.0, 2.0]):
        with pytest.raises(DialectError, match="scale=.*expected a finite number"):
            opened("no_schema", scale=wrong)
    with pytest.raises(DialectError, match="scale=0 .*expected a finite number, at least 1e-30"):
        opened("no_schema", scale=0)


def test_a_mean_as_tensor_and_the_later_loader_in_the_notes():
    """A tensor is what saev's own `scale_mean` file holds."""
    told = json.loads((FIXTURES / "no_schema_scaled" / "case.json").read_text())["answers"]
    x = expected("no_schema_scaled")["x"]
    sae = opened("no_schema_scaled", mean=torch.tensor(told["mean"]))
    assert torch.equal(sae(x), opened("no_schema_scaled")(x))
    assert "without taking b_dec off" in sae.metadata["notes"][0]
    assert sae.metadata["saev"]["sparsity_coeff"] == 4e-4


def test_the_configuration_beside_a_file_answers(tmp_path):
    """The run's config.json says the layer, and which scalings were off; those that were on have to be told."""
    edited("no_schema", tmp_path, lambda header: None)
    config = {"data": {"layer": -2, "scale_mean": False, "scale_norm": False}, "lr": 1e-3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    sae = load_dictionary(tmp_path, model="unknown")
    assert (sae.metadata["site"], sae.transform.kind) == ("vision.-2.resid_post", "none")
    assert sae.metadata["saev_run"]["lr"] == 1e-3
    with pytest.raises(DialectError, match="says mean=0"):
        load_dictionary(tmp_path, model="unknown", mean=torch.ones(D))
    for zero in (0, [0.0] * D, torch.zeros(D)):  # the same again is no contradiction
        assert load_dictionary(tmp_path, model="unknown", mean=zero, scale=1).transform.kind == "none"
    for odd in (None, 0, [], "off"):
        (tmp_path / "config.json").write_text(json.dumps({"data": config["data"] | {"scale_mean": odd}}))
        with pytest.raises(DialectError, match="mean=...:"):
            load_dictionary(tmp_path, model="unknown")
    config["data"] |= {"scale_norm": "norm.pt", "layer": "all"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DialectError, match=r"(?s)site=.*'all'.*scale=") as error:
        load_dictionary(tmp_path, model="unknown")
    assert "mean=..." not in str(error.value)
    (tmp_path / "config.json").write_text(json.dumps({"data": ["hostile"], "train_data": 3}))
    with pytest.raises(DialectError, match="mean="):
        load_dictionary(tmp_path, **WHO)


def test_schema_1_cannot_tell_whether_b_dec_is_taken_off():
    """The two answers give other codes, and each file's own answer gives its own (see the fixtures)."""
    with pytest.raises(DialectError, match=r"subtract_b_dec=.*e7ca004"):
        load_dictionary(FIXTURES / "schema1_topk", **WHO, **RAW)
    x = expected("schema1_topk")["x"]
    other, own = opened("schema1_topk", subtract_b_dec=True).encode(x), opened("schema1_topk").encode(x)
    assert (other - own).abs().max() > 0.5
    with pytest.raises(DialectError, match="subtract_b_dec=.*expected True or False"):
        opened("schema1_topk", subtract_b_dec="no")
    for case, answer in (("schema5_relu", True), ("no_schema", False)):
        with pytest.raises(DialectError, match=f"says subtract_b_dec={not answer}"):
            opened(case, subtract_b_dec=answer)


def test_the_second_layout_of_schema_1(tmp_path):
    """The activation inside the configuration, under the same number."""

    def change(header):
        header["cfg"] |= {"activation": {"cls": "TopK", "params": {"top_k": header["cfg"].pop("top_k")}}}
        header["cls"] = "SparseAutoencoderConfig"

    case = "schema1_topk"
    sae = load_dictionary(edited(case, tmp_path, change), **WHO, **RAW, subtract_b_dec=False)
    assert torch.equal(sae.encode(expected(case)["x"]), opened(case).encode(expected(case)["x"]))


def test_topk_keeps_negative_values_unless_told_otherwise():
    """saev's TopK has no ReLU: with k of more latents than are positive, codes have both signs."""
    case = "schema5_topk_negative"
    x, codes = expected(case)["x"], expected(case)["codes"]
    assert (codes < 0).any() and (codes != 0).sum(1).eq(24).all()
    exact, rectified = opened(case), opened(case, family="topk")
    assert exact.family == "unrectified_topk" and exact.signed and "no ReLU" in exact.metadata["notes"][0]
    assert rectified.family == "topk" and "are dropped" in rectified.metadata["notes"][0]
    assert torch.equal(rectified.encode(x), exact.encode(x).clamp_min(0))
    with pytest.raises(DialectError, match="family=.*expected one of unrectified_topk, topk"):
        opened(case, family="abs_topk")
    few = "schema5_topk"  # with enough positive pre-activations the two are the same
    assert (expected(few)["codes"] >= 0).all()
    assert torch.equal(opened(few, family="topk").encode(expected(few)["x"]), opened(few).encode(expected(few)["x"]))


def test_batch_topk_before_it_had_a_threshold():
    """It chose among the batch, or of each vector: the file says neither, and one message asks for all."""
    where = FIXTURES / "schema2_batch_topk"
    with pytest.raises(DialectError, match=r"(?s)family=.*threshold="):
        load_dictionary(where, **WHO)
    with pytest.raises(DialectError, match=r"threshold="):
        load_dictionary(where, **WHO, family="batch_topk")
    sae = load_dictionary(where, **WHO, family="batch_topk", threshold=0.7)
    z = sae.encode(expected("schema2_batch_topk")["x"])
    assert sae.family == "batch_topk" and 0.7 < z[z > 0].min() < 0.8
    with pytest.raises(
        DialectError, match="family='gated' is no answer.*expected one of batch_topk, unrectified_topk, topk"
    ):
        load_dictionary(where, **WHO, family="gated")


def test_the_stored_threshold_is_exclusive():
    """saev fires above the threshold, not at it; one that was never set lets every positive value through."""
    sae = opened("schema5_batch_topk")
    assert sae.threshold[0] == torch.tensor(0.9)
    at = torch.full((1, N), 0.9)
    assert (sae.activate(at) == 0).all() and (sae.activate(torch.nextafter(at, torch.ones(1))) > 0).all()
    assert (opened("schema5_batch_topk_never_set").threshold == 0).all()
    with pytest.raises(DialectError, match=r"says threshold=0\.89999"):
        opened("schema5_batch_topk", threshold=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: {**h, "schema": 6}, "has schema 6; known are none and 1 to 5"),
        (lambda h: {**h, "schema": True}, "has schema True"),
        (
            lambda h: {**h, "cfg": {**h["cfg"], "activation": {"cls": "AbsBatchTopK", "params": {}}}},
            "whole batch by size",
        ),
        (lambda h: {**h, "cfg": {**h["cfg"], "activation": "TopK"}}, "the activation 'None'"),
        (lambda h: {**h, "cfg": {**h["cfg"], "d_sae": 64}}, r"d_sae=64, its W_enc is \[8, 32\]"),
        (
            lambda h: {**h, "cfg": {**h["cfg"], "activation": {"cls": "TopK", "params": {"top_k": 0}}}},
            "top_k=0 is no count",
        ),
        (lambda h: {**h, "cfg": {**h["cfg"], "activation": {"cls": "TopK", "params": []}}}, "k=...: how many"),
    ],
)
def test_headers_that_are_wrong(tmp_path, change, message):
    with pytest.raises(DialectError, match=message):
        load_dictionary(edited("schema5_topk", tmp_path, change), **WHO)


def test_tensors_that_are_not_expected(tmp_path):
    line, _ = (FIXTURES / "schema5_relu" / "sae.pt").read_bytes().split(b"\n", 1)
    source = Source(FIXTURES / "schema5_relu")
    state = {name: source.tensor(name) for name in source.shapes}
    for extra, message in (
        ({"gate": torch.ones(3)}, "also holds gate"),
        ({"b_enc": torch.ones(5)}, r"b_enc has shape \(5,\); expected \(32,\)"),
        ({"W_enc": torch.ones(3)}, r"W_enc has shape \(3,\)"),
    ):
        torch.save(state | extra, tmp_path / "weights")
        (tmp_path / "sae.pt").write_bytes(line + b"\n" + (tmp_path / "weights").read_bytes())
        with pytest.raises(DialectError, match=message):
            load_dictionary(tmp_path / "sae.pt", **WHO)


def test_k_beyond_all_latents_takes_all(tmp_path):
    """saev takes the smaller of the two."""
    sae = load_dictionary(
        edited("schema5_topk", tmp_path, lambda h: h["cfg"]["activation"]["params"].update(top_k=99)), **WHO
    )
    assert sae.k == N and (sae.encode(expected("schema5_topk")["x"]) != 0).all()


WRITTEN = [("relu", {}), ("unrectified_topk", {"k": 20}), ("batch_topk", {"k": 4}), ("nested_dictionary", {"k": 4})]


@pytest.mark.parametrize(("family", "settings"), WRITTEN)
@pytest.mark.parametrize("kind", ["none", "centre_sqrt_d"])
def test_what_is_written_is_read(tmp_path, family, settings, kind):
    """Up to the rounding of b_dec's way into b_enc and back, and of the transform's into both: 1e-5 of codes near 10."""
    sae, x = made(family, **settings), torch.randn(64, D, generator=torch.Generator().manual_seed(1))
    if kind != "none":
        sae.transform = InputTransform(D, kind)
        sae.transform.mean.copy_(torch.linspace(-1, 1, D))
        sae.transform.scale.fill_(2.0)
    Saev().write(sae, tmp_path / "run")
    again = load_dictionary(tmp_path / "run", **WHO)
    assert again.family == ("batch_topk" if family == "nested_dictionary" else family)
    scale = 1.0 if kind == "none" else 2.0
    assert torch.allclose(again.encode(x) * scale, sae.encode(x), atol=1e-5)
    assert torch.allclose(again(x), sae(x), atol=1e-5)
    header = json.loads((tmp_path / "run" / "sae.pt").read_bytes().split(b"\n", 1)[0])
    assert header["schema"] == 5 and header["cfg"]["d_sae"] == N


def test_what_saev_cannot_express_is_refused(tmp_path):
    several = made("batch_topk", k=4)
    several.threshold[0] = 1.0
    layered = made("relu")
    layered.transform = InputTransform(D, "layer_norm")
    for sae, message in (
        (made("topk", k=4), "has no ReLU"),
        (made("abs_topk", k=4), "saev has no 'abs_topk'"),
        (several, "one threshold for all"),
        (layered, "saev has no input transforms"),
    ):
        with pytest.raises(DialectError, match=message):
            Saev().write(sae, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_safetensors_are_never_taken_for_a_header(tmp_path):
    """A safetensors file may begin with the byte of "{", its length; nobody then looks for JSON there."""
    from safetensors.torch import save_file

    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    save_file({name: torch.ones(2, 2) for name in names}, tmp_path / "x.safetensors")
    assert not Saev().sniff(Source(tmp_path / "x.safetensors"))


def repacked(case, folder, change):
    """A copy of a case's file whose state dict went through `change`."""
    line, weights = (FIXTURES / case / "sae.pt").read_bytes().split(b"\n", 1)
    state = torch.load(io.BytesIO(weights))
    data = io.BytesIO()
    torch.save(change(state) or state, data)
    (folder / "sae.pt").write_bytes(line + b"\n" + data.getvalue())
    return folder


@pytest.mark.parametrize(
    ("case", "place"),
    [("no_schema", ()), ("schema1_topk", ("cfg",)), ("schema5_relu", ()), ("schema5_relu", ("cfg",)),
     ("schema5_relu", ("cfg", "activation")), ("schema5_topk", ("cfg", "activation", "params"))],
)  # fmt: skip
def test_a_field_that_no_version_has_is_asked(tmp_path, case, place):
    """Wherever in the header: the codes of a version that has it may be others."""

    def change(header):
        part = header
        for name in place:
            part = part[name]
        part["rectify"] = False

    facts = json.loads((FIXTURES / case / "case.json").read_text())
    edited(case, tmp_path, change)
    with pytest.raises(DialectError, match=r"other_fields=...: what fields that saev .*\(rectify=False\)"):
        load_dictionary(tmp_path, **WHO | facts["answers"])
    sae = load_dictionary(tmp_path, **WHO | facts["answers"], other_fields="ignored")
    assert torch.equal(sae.encode(expected(case)["x"]), opened(case).encode(expected(case)["x"]))
    assert "rectify=False" in sae.metadata["notes"][-1]


def test_k_in_two_places_is_asked(tmp_path):
    """From schema 2 on k belongs to the activation; one beside it would be of a version that nobody knows."""
    with pytest.raises(DialectError, match="other_fields=.*top_k=7"):
        load_dictionary(edited("schema5_topk", tmp_path, lambda header: header["cfg"].update(top_k=7)), **WHO)
    for case in ("schema5_relu", "schema1_subtracts"):  # and a ReLU has none

        def change(header):
            header["cfg"].get("activation", {"params": header["cfg"]})["params"].update(top_k=7)

        with pytest.raises(DialectError, match="other_fields=.*top_k=7"):
            load_dictionary(edited(case, tmp_path, change), **WHO, **(RAW if case.startswith("schema1") else {}),
                            subtract_b_dec=case.startswith("schema1"))  # fmt: skip
    with pytest.raises(DialectError, match="says k=5, you say 7"):
        opened("schema5_topk", k=7)


@pytest.mark.parametrize("k", [0, -1, 2.5, True, "5", [5], float("nan"), "9" * 10**5])
def test_no_k_of_a_header_makes_the_message_long(tmp_path, k):
    edited("schema5_topk", tmp_path, lambda header: header["cfg"]["activation"]["params"].update(top_k=k))
    with pytest.raises(DialectError, match="top_k=.* is no count") as error:
        load_dictionary(tmp_path, **WHO)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("case", ["schema5_relu", "schema5_topk"])
@pytest.mark.parametrize("extra", [{"activation.threshold": torch.tensor(0.4)}, {"rescale": 2.0}])
def test_a_threshold_of_an_activation_without_one_is_no_part_of_the_file(tmp_path, case, extra):
    """saev's loader is strict; a threshold that is stored and not applied would be lost unseen."""
    with pytest.raises(DialectError, match=f"also holds {next(iter(extra))}, whose part"):
        load_dictionary(repacked(case, tmp_path, lambda state: dict(state) | extra), **WHO)


def test_a_matryoshka_of_schema_2_has_the_codes_of_its_training_where_asked_for(tmp_path):
    """`(x - b_dec) W_enc + b_enc`, which that class computed in training; its loader, of the plain class, leaves b_dec out."""
    case = "schema2_batch_topk"
    x, state = expected(case)["x"], Source(FIXTURES / case)
    assert any("subtract_b_dec=True" in note for note in opened(case).metadata["notes"])
    sae = opened(case, subtract_b_dec=True)
    pre = (x - state.tensor("b_dec")) @ state.tensor("W_enc") + state.tensor("b_enc")
    best = torch.zeros_like(pre).scatter(1, pre.topk(6).indices, 1.0)
    assert (sae.encode(x) - pre * best).abs().max() <= 1e-6 * pre.abs().max()  # float32, summed in another order
    assert not any("subtract_b_dec" in note for note in sae.metadata["notes"])
    with pytest.raises(DialectError, match="says subtract_b_dec=False"):  # from schema 3 on, training is as the loader
        opened("schema3_topk", subtract_b_dec=True)


def test_half_precision_is_only_how_weights_are_stored(tmp_path):
    """saev's loader copies into float32 and computes there, and so do we: nothing to note, the same weights."""
    sae = load_dictionary(
        repacked("schema5_batch_topk", tmp_path, lambda s: {k: v.half() for k, v in s.items()}), **WHO
    )
    assert not sae.metadata["notes"]
    assert torch.equal(sae.W_dec, Source(FIXTURES / "schema5_batch_topk").tensor("W_dec").half().float())


def test_numbers_may_come_as_the_tensors_that_saev_keeps(tmp_path):
    """Both of its scaling files are tensors; a mean of other length or a scale of several numbers is refused."""
    x = expected("no_schema")["x"]
    sae = opened("no_schema", mean=torch.linspace(-1, 2, D), scale=torch.tensor(2.5))
    assert torch.equal(sae.encode(x), opened("no_schema_scaled").encode(x))
    for wrong in (torch.ones(3), torch.tensor(float("nan")), None):
        with pytest.raises(DialectError, match=r"scale=.*(expected a finite number|\.\.\.:)"):
            opened("no_schema", scale=wrong)


@pytest.mark.parametrize(("data", "noted"), [({"patches": "cls"}, "'cls'"), ({"tokens": "special"}, "'special'"),
                                             ({"patches": ["cls"] * 999}, "cls"), ({"patches": "patches"}, ""),
                                             ({"tokens": "content"}, ""), ({}, "")])  # fmt: skip
def test_a_run_on_other_tokens_than_patches_is_noted(tmp_path, data, noted):
    edited("schema5_relu", tmp_path, lambda header: None)
    (tmp_path / "config.json").write_text(json.dumps({"train_data": data}))
    notes = load_dictionary(tmp_path, **WHO).metadata["notes"]
    assert [noted in note and len(note) < 200 for note in notes] == [True] * bool(noted)
