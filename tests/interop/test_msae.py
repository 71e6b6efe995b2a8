from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from vlsae.dictionaries.batch_topk import BatchTopKDictionary
from vlsae.dictionaries.jumprelu import JumpReLUDictionary
from vlsae.dictionaries.nested_sparsity import NestedSparsityMatryoshka
from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.dictionaries.tied import TiedDictionary
from vlsae.dictionaries.topk import TopKDictionary
from vlsae.dictionaries.transform import InputTransform
from vlsae.interop.dialect import DIALECTS, DialectError
from vlsae.interop.load import load_dictionary
from vlsae.interop.source import Source

FIXTURES = Path(__file__).parent / "fixtures" / "msae"
UNKNOWN = {"model": "unknown", "site": "unknown"}
OFF = {"normalize": False, "soft_cap": 0}


def fixture(case: str) -> Path:
    return next((FIXTURES / case).glob("*.pth"))


def renamed(folder: Path, case: str, name: str) -> Path:
    path = folder / name
    path.write_bytes(fixture(case).read_bytes())
    return path


def inputs(case: str) -> torch.Tensor:
    return load((FIXTURES / case / "expected.st").read_bytes())["x"]


def asked(error) -> list[str]:
    return [line.strip().partition("=")[0] for line in str(error.value).splitlines()[1:]]


def test_the_name_tells_all_but_model_and_site():
    with pytest.raises(DialectError) as error:
        load_dictionary(fixture("relu"))
    assert asked(error) == ["model", "site"] and "'cc3m_ViT-B~32_train_image_100_8'" in str(error.value)
    facts = load_dictionary(fixture("relu"), **UNKNOWN).metadata
    assert (facts["sparse_weight"], facts["dataset"]) == (0.003, "cc3m_ViT-B~32_train_image_100_8")
    assert facts["target_norm"] == 8**0.5
    assert load_dictionary(fixture("msae_rw"), **UNKNOWN).metadata["level_weights"] == "RW"


@pytest.mark.parametrize(
    "case, answers",
    [
        ("relu", {"family": "relu"}),
        ("topk", {"family": "topk", "k": 5}),
        ("batch_topk", {"family": "batch_topk", "k": 5, "threshold": 0.0}),
        ("msae_uw", {"family": "nested_sparsity", "ks": [4, 8, 16, 32]}),
        ("jumprelu", {}),
    ],
)
def test_a_renamed_file_asks_and_then_gives_the_same_codes(tmp_path, case, answers):
    path = renamed(tmp_path, case, "best.pth")
    with pytest.raises(DialectError) as error:
        load_dictionary(path)
    assert asked(error) == ["family"] * ("family" in answers) + ["normalize", "soft_cap", "model", "site"]
    given = {"threshold": 0.0} if case == "batch_topk" else {}
    named = load_dictionary(fixture(case), **UNKNOWN, **given)
    again = load_dictionary(path, **answers, **OFF, **UNKNOWN)
    x = inputs(case)
    assert torch.equal(again.encode(x), named.encode(x)) and again.settings == named.settings


def test_a_family_that_needs_more_asks_for_it(tmp_path):
    path = renamed(tmp_path, "topk", "best.pth")
    with pytest.raises(DialectError) as error:
        load_dictionary(path, family="batch_topk", **OFF, **UNKNOWN)
    assert asked(error) == ["k", "threshold"]


def test_a_name_of_another_file_is_refused(tmp_path):
    path = renamed(tmp_path, "topk", "64_8_TopKReLU_5_False_False_0.0_cc3m.pth")
    with pytest.raises(DialectError, match=r"says 64 latents of width 8, and the encoder is \(8, 32\)"):
        load_dictionary(path, **UNKNOWN)


@pytest.mark.parametrize(
    "case, name, said",
    [
        ("relu", "32_8_TopK_5_False_False_0.0_a", "activation 'TopK'"),  # keeps negative codes
        ("relu", "32_8_TopKabsReLU_5_False_False_0.0_a", "TopKabsReLU"),
        ("relu", "32_8_Identity_False_False_0.0_a", "Identity"),
        ("relu", "32_8_TopKELU1p_5_False_False_0.0_a", "TopKELU1p"),
        ("relu", "32_8_BatchTopKReLU_5_UW_False_False_0.0_a", "BatchTopKReLU"),
        ("relu", "32_8_JumpReLU_32_False_False_0.0_a", "no learned thresholds"),
        ("jumprelu", "32_8_JumpReLU_16_False_False_0.0_a", "says 16 thresholds for 32 latents"),
        ("jumprelu", "32_8_ReLU_003_False_False_0.0_a", "'ReLU' and the file has learned thresholds"),
        ("relu", "32_8_ReLU_003_True_False_0.0_a", "tied=True, and the file has a decoder"),
        ("relu_tied", "32_8_ReLU_003_False_False_0.0_a", "tied=False, and the file has no decoder"),
        ("relu", "32_8_ReLU_003_False_True_0.0_a", "normalize=True"),
        ("relu", "32_8_ReLU_003_False_False_30.0_a", "soft_cap=30.0"),
    ],
)
def test_what_no_family_computes_and_what_contradicts_the_file_is_refused(tmp_path, case, name, said):
    with pytest.raises(DialectError) as error:
        load_dictionary(renamed(tmp_path, case, f"{name}.pth"), **UNKNOWN)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "answers",
    [{"normalize": True, "soft_cap": 0}, {"normalize": False, "soft_cap": 30}],
)
def test_said_standardising_and_soft_caps_are_refused(tmp_path, answers):
    with pytest.raises(DialectError, match="only normalize=False with soft_cap=0"):
        load_dictionary(renamed(tmp_path, "relu", "a.pth"), family="relu", **answers, **UNKNOWN)


@pytest.mark.parametrize(
    "answers, said",
    [
        ({"normalize": "False"}, "normalize='False' is no answer.*expected True or False"),
        ({"normalize": 0}, "expected True or False"),
        ({"soft_cap": False}, "soft_cap=False is no answer.*expected a finite number"),
        ({"soft_cap": "0"}, "expected a finite number"),
        ({"family": "gated"}, "family='gated' is no answer.*relu, topk, batch_topk, jumprelu, nested_sparsity"),
        ({"family": "topk", "k": 33}, "k=33 is no answer.*at least 1 and at most 32"),
        ({"family": "nested_sparsity", "ks": 4}, "ks=4 is no answer.*expected a list of whole numbers"),
        ({"family": "nested_sparsity", "ks": "48"}, "expected a list of whole numbers"),
        ({"family": "nested_sparsity", "ks": [4.5]}, "expected a finite whole number"),
    ],
)
def test_answers_are_of_their_kind(tmp_path, answers, said):
    given = {"family": "relu", **OFF, **UNKNOWN, **answers}
    with pytest.raises(DialectError, match=said):
        load_dictionary(renamed(tmp_path, "relu", "a.pth"), **given)


@pytest.mark.parametrize("threshold", [-0.1, True, "0.5", float("nan"), float("inf"), 1e39])
def test_a_batch_topk_needs_a_threshold(threshold):
    with pytest.raises(DialectError, match=r"threshold=\.\.\.: above which value a code counts"):
        load_dictionary(fixture("batch_topk"), **UNKNOWN)
    with pytest.raises(DialectError, match="threshold=.* is no answer.*expected a finite number, at least 0"):
        load_dictionary(fixture("batch_topk"), threshold=threshold, **UNKNOWN)


def test_the_threshold_cuts_full_codes():
    x = inputs("batch_topk")
    full = load_dictionary(fixture("batch_topk"), threshold=0, **UNKNOWN).encode(x)
    cut = load_dictionary(fixture("batch_topk"), threshold=1.5, **UNKNOWN).encode(x)
    assert torch.equal(cut, full * (full > 1.5)) and 0 < (cut > 0).sum() < (full > 0).sum()


def test_a_batch_topk_without_relu_is_told_that_msae_gives_all_its_pre_activations(tmp_path):
    path = renamed(tmp_path, "batch_topk", "32_8_BatchTopK_5_False_False_0.0_a.pth")
    notes = load_dictionary(path, threshold=0, **UNKNOWN).metadata["notes"]
    assert "negative ones too" in notes[0]
    assert load_dictionary(fixture("batch_topk"), threshold=0, **UNKNOWN).metadata["notes"] == []


def changed(folder: Path, case: str, model: dict | None = None, **more) -> Path:
    content = torch.load(fixture(case), weights_only=False)
    path = folder / fixture(case).name
    torch.save({**content, "model": {**content["model"], **(model or {})}, **more}, path)
    return path


def test_tensors_and_fields_of_other_forward_passes_are_not_passed_over(tmp_path):
    with pytest.raises(DialectError, match=r"also holds model\.gate, whose part in the codes is unknown"):
        load_dictionary(changed(tmp_path, "relu", {"gate": torch.ones(32)}), **UNKNOWN)
    path = changed(tmp_path, "relu", temperature=0.5)
    with pytest.raises(DialectError, match=r"other_fields=\.\.\.: what fields that MSAE .*\(temperature=0.5\)"):
        load_dictionary(path, **UNKNOWN)
    assert "temperature" in load_dictionary(path, other_fields="ignored", **UNKNOWN).metadata["notes"][0]


def test_the_newer_format_is_refused_with_the_way_to_convert_it(tmp_path):
    """By that way it opens with the same codes."""
    content = torch.load(fixture("relu"), weights_only=False)
    scale = {name: content[name] for name in ("mean_center", "scaling_factor", "target_norm")}
    new = {"model_state_dict": content["model"], "model_class": "Autoencoder", "model_config": {"activation": "ReLU"},
           "preprocessing": scale, "bias_init_tensor": None, "checkpoint_version": "1.0"}  # fmt: skip
    torch.save(new, tmp_path / "new.pth")
    with pytest.raises(DialectError, match=r"checkpoint_version=1\.0.*torch\.save\(.*best\.pth"):
        load_dictionary(tmp_path / "new.pth")
    old = torch.load(tmp_path / "new.pth", weights_only=False)
    torch.save({"model": old["model_state_dict"], **old["preprocessing"]}, tmp_path / "best.pth")
    again, x = load_dictionary(tmp_path / "best.pth", family="relu", **OFF, **UNKNOWN), inputs("relu")
    assert torch.equal(again.encode(x), load_dictionary(fixture("relu"), **UNKNOWN).encode(x))


@pytest.mark.parametrize("mean", [0.25, torch.tensor(0.25), torch.tensor([0.25])])
def test_one_mean_for_all_coordinates_is_taken_off_each(tmp_path, mean):
    transform = load_dictionary(changed(tmp_path, "relu", mean_center=mean), **UNKNOWN).transform
    assert torch.equal(transform.mean, torch.full((8,), 0.25))


def test_the_stored_scale_is_used_and_not_the_one_that_its_norm_would_give():
    content = torch.load(fixture("relu"), weights_only=False)
    transform = load_dictionary(fixture("relu"), **UNKNOWN).transform
    assert torch.equal(transform.mean, content["mean_center"])
    assert torch.equal(transform.scale, torch.full((8,), 0.43))


@pytest.mark.parametrize("change", [{"scaling_factor": 0.0}, {"scaling_factor": None}, {"mean_center": torch.zeros(3)}])
def test_a_scale_that_is_none_is_refused(tmp_path, change):
    path = tmp_path / fixture("relu").name
    torch.save({**torch.load(fixture("relu"), weights_only=False), **change}, path)
    with pytest.raises(DialectError, match="scaling_factor"):
        load_dictionary(path, **UNKNOWN)


def test_levels_double_from_the_first_and_are_said_to_be_a_default(tmp_path):
    dictionary = load_dictionary(fixture("msae_uw"), **UNKNOWN)
    assert dictionary.ks == [4, 8, 16, 32] and "ks=[4, 8, 16, 32]" in dictionary.metadata["notes"][0]
    told = load_dictionary(fixture("msae_uw"), ks=[4, 12], **UNKNOWN)
    assert told.ks == [4, 12] and told.metadata["notes"] == []
    odd = renamed(tmp_path, "msae_uw", "32_8_TopKReLU_0_UW_False_False_0.0_a.pth")
    assert load_dictionary(odd, **UNKNOWN).ks == [32]
    with pytest.raises(DialectError, match="must rise strictly"):
        load_dictionary(fixture("msae_uw"), ks=[4, 4], **UNKNOWN)


SCALED = {"mean_center": 1, "scaling_factor": 1}


@pytest.mark.parametrize(
    "content", [[1], {}, {**SCALED, "model": [1]}, {**SCALED, "model": {"encoder": torch.ones(2, 3)}}]
)
def test_other_files_are_not_taken(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    assert not DIALECTS.get("msae")().sniff(Source(tmp_path))


def filled(dictionary, kind: str = "none"):
    drawn = torch.Generator().manual_seed(3)
    for part in dictionary.requires_grad_(False).parameters():
        part.copy_(torch.randn(part.shape, generator=drawn))
    dictionary.transform = InputTransform.fit(2 + torch.randn(50, 4, generator=drawn), kind)
    return dictionary


@pytest.mark.parametrize("kind", ["none", "centre", "centre_sqrt_d", "scalar"])
@pytest.mark.parametrize(
    "dictionary", [ReLUDictionary(4, 8), TopKDictionary(4, 8, k=3), NestedSparsityMatryoshka(4, 8, ks=[2, 4, 8])]
)
def test_what_is_written_reads_back(tmp_path, dictionary, kind):
    ours, x = filled(dictionary, kind), torch.randn(20, 4)
    ours.metadata = {"dataset": "a/b.pt"}  # a name that would not survive as part of a file's
    DIALECTS.get("msae")().write(ours, tmp_path)
    again = load_dictionary(tmp_path, **UNKNOWN)
    assert (again.family, again.settings) == (ours.family, ours.settings) and again.metadata["dataset"] == "vlsae"
    assert torch.equal(again.encode(x), ours.encode(x)) and torch.equal(again(x), ours(x))


def test_what_the_name_of_a_file_said_is_written_again(tmp_path):
    for case in ("relu", "topk", "msae_rw"):
        DIALECTS.get("msae")().write(load_dictionary(fixture(case), **UNKNOWN), tmp_path / case)
        assert (tmp_path / case / fixture(case).name).is_file()


@pytest.mark.parametrize(
    "weight, decimals", [(1.5e-5, "000015"), (0.003, "003"), (0.0, "0"), ("a/b", "0"), (None, "0")]
)
def test_names_are_written_that_their_loader_and_ours_can_read(tmp_path, weight, decimals):
    """Whatever the metadata holds: their loader splits at underscores and opens what comes before `.pt`."""
    ours = filled(ReLUDictionary(4, 8))
    ours.metadata = {"sparse_weight": weight, "dataset": "a" * 300, "target_norm": "two"}
    DIALECTS.get("msae")().write(ours, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"8_4_ReLU_{decimals}_False_False_0.0_vlsae.pth"]
    facts = load_dictionary(tmp_path, **UNKNOWN).metadata
    assert facts["sparse_weight"] == float(f"0.{decimals}") and facts["target_norm"] == 2.0
    nested = filled(NestedSparsityMatryoshka(4, 8, ks=[2, 8]))
    nested.metadata = {"level_weights": "a/b"}
    DIALECTS.get("msae")().write(nested, tmp_path / "nested")
    assert (tmp_path / "nested" / "8_4_TopKReLU_2_UW_False_False_0.0_vlsae.pth").is_file()


@pytest.mark.parametrize(
    "dictionary, kind, said",
    [
        (BatchTopKDictionary(4, 8, k=2), "none", "stores no threshold"),
        (JumpReLUDictionary(4, 8), "none", "its own loader cannot open"),
        (NestedSparsityMatryoshka(4, 8, cut=2), "none", "cut to its largest"),
        (TiedDictionary(4, 8), "none", "has no such activation"),
        (ReLUDictionary(4, 8), "unit", "transform 'unit'"),
        (ReLUDictionary(4, 8), "standardise", "transform 'standardise'"),
    ],
)
def test_what_it_cannot_express_is_not_written(tmp_path, dictionary, kind, said):
    with pytest.raises(DialectError, match=said):
        DIALECTS.get("msae")().write(filled(dictionary, kind), tmp_path / "new")
    assert not (tmp_path / "new").exists()
