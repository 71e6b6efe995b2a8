from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from vlsae.dictionaries.distance import DistanceDictionary
from vlsae.dictionaries.transform import InputTransform
from vlsae.dictionaries.vl_sae import VLSAE
from vlsae.interop.dialect import DIALECTS, DialectError
from vlsae.interop.load import load_dictionary
from vlsae.interop.source import Source

FIXTURES = Path(__file__).parent / "fixtures" / "vl_sae"
UNKNOWN = {"model": "unknown", "site": "unknown"}
D, N, K = 4, 8, 3


def dictionary(**settings) -> VLSAE:
    made = VLSAE(D, N, **{"k": K, **settings}).requires_grad_(False)
    drawn = torch.Generator().manual_seed(4)
    for part in made.parameters():
        part.copy_(torch.randn(part.shape, generator=drawn))
    return made


def test_everything_is_asked_at_once_with_what_the_name_suggests():
    with pytest.raises(DialectError) as error:
        load_dictionary(FIXTURES / "vl_sae")
    asked = [name for name in ("k", "model", "site", "modality") if f"\n  {name}=" in str(error.value)]
    assert asked == ["k", "model", "site"]
    assert "here perhaps 6)" in str(error.value) and "openclip_ViT-B-32_VL_SAE_6_4_best.pth" in str(error.value)
    assert "vision.pooled or text.pooled of width 8" in str(error.value)


def test_the_two_encoders_of_an_ablation_are_one_question_more():
    with pytest.raises(DialectError, match=r"modality=\.\.\.: which of its two encoders .* - image or text"):
        load_dictionary(FIXTURES / "sae_d_image")
    with pytest.raises(DialectError, match=r"modality='audio' is no answer.*expected one of image, text"):
        load_dictionary(FIXTURES / "sae_d_image", k=6, modality="audio", **UNKNOWN)
    assert load_dictionary(FIXTURES / "sae_d_text", k=6, modality="text", **UNKNOWN).metadata["modality"] == "text"


@pytest.mark.parametrize("case, more", [("vl_sae", {}), ("sae_v", {}), ("sae_d_text", {"modality": "text"})])
@pytest.mark.parametrize("k", [0, 32, 10**30, "6", 1.5, True])
def test_an_impossible_k_is_refused(case, more, k):
    """Their classes look for the largest that is left out of 32, so that one must be."""
    with pytest.raises(DialectError, match="k=.* is no answer.*a finite whole number, at least 1 and at most 31"):
        load_dictionary(FIXTURES / case, k=k, **more, **UNKNOWN)


@pytest.mark.parametrize("name, said, hinted", [
    ("llava_5_4_best", True, "5"), ("openclip_ViT-B-32_VL_SAE_5_4_0.0123_final", True, "5"),
    ("openclip_ViT-B-32_VL_SAE_6_4_best", False, "6"), ("a_5_8_best", False, None), ("a", False, None),
])  # fmt: skip
def test_a_k_that_is_not_the_one_of_the_name_is_told(tmp_path, name, said, hinted):
    """The name's second number is the ratio, here 4; with another one it is no name of theirs."""
    path = tmp_path / f"{name}.pth"
    path.write_bytes((FIXTURES / "vl_sae" / "openclip_ViT-B-32_VL_SAE_6_4_best.pth").read_bytes())
    with pytest.raises(DialectError, match=f"here perhaps {hinted}" if hinted else r"activates - a whole number"):
        load_dictionary(path)
    notes = load_dictionary(path, k=6, **UNKNOWN).metadata["notes"]
    assert ("Its name says that topk was 5 in training; it is read with k=6, as was said." in notes) == said


def test_texts_are_decoded_by_the_text_decoder():
    """By hand from the file's own tensors."""
    dictionary = load_dictionary(FIXTURES / "vl_sae", k=6, **UNKNOWN)
    x = load((FIXTURES / "vl_sae" / "expected.st").read_bytes())["x"]
    state = torch.load(FIXTURES / "vl_sae" / "openclip_ViT-B-32_VL_SAE_6_4_best.pth")
    z = dictionary.encode(x)
    by_hand = z @ state["text_decoder.weight"].T + state["text_decoder.bias"]
    torch.testing.assert_close(dictionary.decode(z, modality="text"), by_hand, rtol=0, atol=1e-5)
    assert (dictionary(x) - by_hand).abs().max() > 1


def test_ties_are_kept_up_to_k_and_the_difference_is_told(tmp_path):
    """Three equal latents nearest to x and k=2: the released code keeps none of them, ours two."""
    state = {"encoder": torch.eye(4)[[0, 0, 0, 1, 2, 3]], "vision_decoder.weight": torch.ones(4, 6),
             "vision_decoder.bias": torch.ones(4), "text_decoder.weight": torch.ones(4, 6),
             "text_decoder.bias": torch.ones(4)}  # fmt: skip
    torch.save(state, tmp_path / "llava_2_8_best.pth")
    dictionary = load_dictionary(tmp_path, k=2, **UNKNOWN)
    z = dictionary.encode(torch.tensor([[1.0, 0.1, 0.1, 0.1]])).detach()
    assert int((z > 0).sum()) == 2 and float(z[0, 3:].sum()) == 0
    assert ["tie" in note for note in dictionary.metadata["notes"]] == [True, False]
    assert "auxiliary autoencoder" in dictionary.metadata["notes"][1]


@pytest.mark.parametrize(
    "name, shape", [("encoder", (6,)), ("vision_decoder.weight", (6,)), ("text_decoder.bias", (5,))]
)
def test_tensors_that_do_not_fit_are_named(tmp_path, name, shape):
    state = dict(torch.load(FIXTURES / "vl_sae" / "openclip_ViT-B-32_VL_SAE_6_4_best.pth"))
    torch.save({**state, name: torch.zeros(shape)}, tmp_path / "a.pth")
    with pytest.raises(DialectError, match=f"{name} has shape|b_dec_text is"):
        load_dictionary(tmp_path, k=6, **UNKNOWN)


def test_a_linear_encoder_that_does_not_fit_its_decoder_is_named(tmp_path):
    state = dict(torch.load(FIXTURES / "sae_v" / "sae_v.pth"))
    torch.save({**state, "decoder.0.bias": torch.zeros(5)}, tmp_path / "a.pth")
    with pytest.raises(
        DialectError, match=r"encoder.weight has shape \(32, 8\); with biases of shape \(32,\) and \(5,\)"
    ):
        load_dictionary(tmp_path, k=6, **UNKNOWN)


def test_other_files_are_not_taken(tmp_path):
    """The auxiliary autoencoder of the same project, and a state dict with one name more."""
    state = torch.load(FIXTURES / "vl_sae" / "openclip_ViT-B-32_VL_SAE_6_4_best.pth")
    for content in ({**state, "threshold": torch.ones(1)}, {"vision_projection.weight": torch.ones(2, 2)}, [1], {}):
        torch.save(content, tmp_path / "a.pth")
        assert not DIALECTS.get("vl_sae")().sniff(Source(tmp_path))


def test_what_is_written_reads_back(tmp_path):
    ours, x = dictionary(), torch.randn(20, D)
    DIALECTS.get("vl_sae")().write(ours, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["VL_SAE_3_2_best.pth"]
    again = load_dictionary(tmp_path, k=K, **UNKNOWN)
    assert torch.equal(again.encode(x), ours.encode(x)) and torch.equal(again(x), ours(x))
    z = ours.encode(x)
    assert torch.equal(again.decode(z, modality="text"), ours.decode(z, modality="text"))


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda d: DistanceDictionary(D, N, k=K), "family 'distance'"),
        (lambda d: setattr(d, "transform", InputTransform(D, "unit")), "transform 'unit'"),
        (lambda d: dictionary(k=N), r"cannot keep all latents \(k=8 of 8\)"),
    ],
)
def test_what_it_cannot_express_is_not_written(tmp_path, change, said):
    ours = dictionary()
    ours = change(ours) or ours
    with pytest.raises(DialectError, match=said):
        DIALECTS.get("vl_sae")().write(ours, tmp_path / "new")
    assert not (tmp_path / "new").exists()
