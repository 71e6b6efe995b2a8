"""sparsify: what its configuration leaves open is asked for, what no family computes is refused, and both ways agree."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from vlsae.dictionaries import DICTIONARIES
from vlsae.dictionaries.transform import InputTransform
from vlsae.interop.dialect import DialectError
from vlsae.interop.dialects.sparsify import Sparsify
from vlsae.interop.load import load_dictionary

FIXTURES = Path(__file__).parent / "fixtures" / "sparsify"
WHO = {"model": "unknown", "site": "unknown"}
D, N = 8, 32


def edited(folder, case="layers.5", drop=(), **fields):
    """A copy of a case with other fields in its configuration."""
    shutil.copytree(FIXTURES / case, folder, dirs_exist_ok=True)
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in (cfg | fields).items() if k not in drop}))
    return folder


def made(family, **settings):
    sae = DICTIONARIES.get(family)(D, N, **settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        sae.b_enc.copy_(0.3 * torch.randn(N, generator=generator))
        sae.b_dec.copy_(0.5 + torch.randn(D, generator=generator))
    return sae


def test_b_dec_is_taken_off_unless_it_transcodes(tmp_path):
    """The same weights under the other answer give other codes; each fixture holds its own."""
    x = load((FIXTURES / "layers.5" / "expected.st").read_bytes())["x"]
    own, other = (load_dictionary(edited(tmp_path / str(t), transcode=t), **WHO) for t in (False, True))
    assert (own.family, other.family) == ("topk", "transcoder")
    assert (own.encode(x) - other.encode(x)).abs().max() > 0.5


def test_where_it_is_from_is_asked_unless_the_module_is_of_a_clip(tmp_path):
    """`layers.5` may be a block of any language model; the folder of a CLIP's module says all."""
    with pytest.raises(DialectError, match=r"(?s)model=.*site=.*'layers\.5'.*of width 8"):
        load_dictionary(FIXTURES / "layers.5")
    for name, transcode, site in (
        ("vision_model.encoder.layers.23", False, "vision.23.resid_post"),
        ("text_model.encoder.layers.4.mlp", False, "text.4.mlp_out"),
        ("vision_model.encoder.layers.7.mlp", True, "vision.7.mlp_in"),
    ):
        sae = load_dictionary(edited(tmp_path / name, transcode=transcode), model="hf:openai/clip-vit-base-patch32")
        assert sae.metadata["site"] == site and sae.metadata["hookpoint"] == name
        assert sae.metadata["sparsify"]["k"] == 4


def test_what_old_files_lack(tmp_path):
    """The first versions had no transcoders and one activation; between those and 1.0 a file does not say which it is."""
    gone = ("transcode", "skip_connection", "activation", "multi_topk", "num_latents")
    sae = load_dictionary(edited(tmp_path / "a", drop=gone, expansion_factor=N // D), **WHO)
    assert (sae.family, sae.k) == ("topk", 4)
    with pytest.raises(DialectError, match="transcode=...: whether"):
        load_dictionary(edited(tmp_path / "b", drop=("transcode",)), **WHO)
    assert load_dictionary(tmp_path / "b", **WHO, transcode=True).family == "transcoder"
    for missing in ({"drop": ("k",)}, {"k": 0}, {"k": None}):
        with pytest.raises(DialectError, match="k=...: how many"):
            load_dictionary(edited(tmp_path / "c", **missing), **WHO)
    assert load_dictionary(tmp_path / "c", **WHO, k=3).k == 3
    (tmp_path / "c" / "cfg.json").unlink()
    with pytest.raises(DialectError, match=r"has no cfg\.json beside it"):
        load_dictionary(tmp_path / "c" / "sae.safetensors", **WHO)


def test_signed_codes_are_the_largest_by_size(tmp_path):
    sae = load_dictionary(edited(tmp_path, signed=True), **WHO)
    x = load((FIXTURES / "layers.5" / "expected.st").read_bytes())["x"]
    pre = sae.pre(x)
    kept = pre.abs() >= pre.abs().topk(4).values[:, -1:]
    assert sae.family == "abs_topk" and torch.equal(sae.encode(x), pre * kept)
    with pytest.raises(DialectError, match="no version of sparsify had both"):
        load_dictionary(edited(tmp_path, signed=True, transcode=True), **WHO)


def test_notes(tmp_path):
    """Multi-TopK is a loss; weights in bfloat16 are computed with in float32."""
    assert "Multi-TopK" in load_dictionary(FIXTURES / "k_beyond_positives", **WHO).metadata["notes"][0]
    edited(tmp_path)
    weights = {name: value.bfloat16() for name, value in load_file(tmp_path / "sae.safetensors").items()}
    save_file(weights, tmp_path / "sae.safetensors")
    sae = load_dictionary(tmp_path, **WHO)
    assert "stored in bfloat16" in sae.metadata["notes"][0] and sae.W_dec.dtype == torch.float32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation": "groupmax"}, "each of k groups of latents is no TopK"),
        ({"activation": ["topk"]}, "expected topk; no family has it"),
        ({"skip_connection": True}, "W_skip"),
        ({"k": 33}, "k=33 does not fit; expected a whole number from 1 to its 32"),
        ({"k": True}, "k=True does not fit"),
        ({"transcode": "yes"}, "transcode=yes does not fit; expected true or false"),
        ({"d_in": 9}, "d_in=9 does not fit; expected 8"),
        ({"num_latents": 16}, "num_latents=16 does not fit; expected 32"),
        ({"num_latents": 0, "expansion_factor": 3}, "num_latents=24 does not fit"),
        ({"batch_topk": True, "input_unit_norm": 1}, r"other_fields=.*batch_topk=True, input_unit_norm=1"),
    ],
)
def test_configurations_that_are_wrong_or_not_ours_to_compute(tmp_path, fields, message):
    with pytest.raises(DialectError, match=message):
        load_dictionary(edited(tmp_path, **fields), **WHO)


def test_fields_of_other_versions_can_be_ignored(tmp_path):
    edited(tmp_path, dtype="float32", batch_topk=False)
    assert load_dictionary(tmp_path, **WHO, other_fields="ignored").k == 4
    with pytest.raises(DialectError, match="expected one of ignored"):
        load_dictionary(tmp_path, **WHO, other_fields="kept")


def test_tensors_beyond_the_four(tmp_path):
    edited(tmp_path)
    weights = load_file(tmp_path / "sae.safetensors")
    for extra, message in (("W_skip", "linear in the input"), ("in_norm", "also holds in_norm")):
        save_file(weights | {extra: torch.zeros(D, D)}, tmp_path / "sae.safetensors")
        with pytest.raises(DialectError, match=message):
            load_dictionary(tmp_path, **WHO)
    save_file({name: value for name, value in weights.items() if name != "W_dec"}, tmp_path / "sae.safetensors")
    with pytest.raises(DialectError, match="misses W_dec and also holds nothing"):
        load_dictionary(tmp_path, **WHO, dialect="sparsify")
    save_file(weights | {"b_dec": torch.zeros(3)}, tmp_path / "sae.safetensors")
    with pytest.raises(DialectError, match="do not fit"):
        load_dictionary(tmp_path, **WHO)


@pytest.mark.parametrize(("family", "settings"), [("topk", {"k": 5}), ("transcoder", {"k": 5}), ("relu", {})])
def test_what_is_written_is_read(tmp_path, family, settings):
    """The tensors are copied, so all is equal bit for bit; a ReLU is a TopK of all latents."""
    sae, x = made(family, **settings), torch.randn(64, D, generator=torch.Generator().manual_seed(1))
    Sparsify().write(sae, tmp_path)
    again = load_dictionary(tmp_path, **WHO)
    assert again.family == ("topk" if family == "relu" else family)
    assert torch.equal(again.encode(x), sae.encode(x)) and torch.equal(again(x), sae(x))


@pytest.mark.parametrize("family", ["topk", "transcoder"])
def test_a_transform_is_folded_before_writing(tmp_path, family):
    """Rounding of the folded biases: 1e-5 of values near 10; codes come in the activations' units, half of those here."""
    sae, x = made(family, k=5), torch.randn(64, D, generator=torch.Generator().manual_seed(1))
    sae.transform = InputTransform(D, "centre_sqrt_d")
    sae.transform.mean.copy_(torch.linspace(-1, 1, D))
    sae.transform.scale.fill_(2.0)
    Sparsify().write(sae, tmp_path)
    again = load_dictionary(tmp_path, **WHO)
    assert torch.allclose(2 * again.encode(x), sae.encode(x), atol=1e-5) and torch.allclose(again(x), sae(x), atol=1e-5)
    assert sae.transform.kind == "centre_sqrt_d"


def test_what_sparsify_cannot_express_is_refused(tmp_path):
    unit = made("topk", k=4)
    unit.transform = InputTransform(D, "unit")
    for sae, message in ((made("unrectified_topk", k=4), "rectified"), (made("batch_topk", k=4), "'batch_topk' is not"),
                         (unit, "sparsify has no input transforms")):  # fmt: skip
        with pytest.raises(DialectError, match=message):
            Sparsify().write(sae, tmp_path / "x")
    assert not (tmp_path / "x").exists()
