"""The dialect usae: a checkpoint of the training of Universal SAEs."""

import pytest
import torch
import torch.nn.functional as F

from vlsae.interop.dialect import DIALECTS, DialectError
from vlsae.interop.load import load_dictionary
from vlsae.interop.source import Source

D, N = 6, 20
UNKNOWN = {"model": "unknown", "site": "unknown"}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def checkpoint(**more):
    block = "encoder.final_block"
    state = {
        f"{block}.0.weight": draw(N, D), f"{block}.0.bias": draw(N, seed=1), f"{block}.1.weight": 1 + draw(N, seed=2).abs(),
        f"{block}.1.bias": draw(N, seed=3), f"{block}.1.running_mean": draw(N, seed=4),
        f"{block}.1.running_var": 0.1 + draw(N, seed=5).abs(), f"{block}.1.num_batches_tracked": torch.tensor(9),
        "dictionary._weights": 3 * draw(N, D, seed=6),
    }  # fmt: skip
    return {"epoch": 29, "model_state_dict": state | more, "optimizer_state_dict": {}, "learning_rate": 1e-6}


def opened(tmp_path, content, **answers):
    torch.save(content, tmp_path / "uni_SigLIP_checkpoint_29.pth")
    return load_dictionary(tmp_path / "uni_SigLIP_checkpoint_29.pth", **UNKNOWN | answers)


def test_codes_are_those_of_the_paper_computed_once_more(tmp_path):
    """In double precision from the tensors of the file: normalisation of inputs, batch norm, ReLU, the 4 largest."""
    sae = opened(tmp_path, checkpoint(), k=4, mean=-0.03, std=2.2)
    state = {name.rpartition("block.")[2]: value.double() for name, value in checkpoint()["model_state_dict"].items()}
    x = 2 * draw(12, D, seed=7)
    pre = ((x.double() + 0.03) / (2.2 + 1e-5)) @ state["0.weight"].T + state["0.bias"]
    pre = (pre - state["1.running_mean"]) / (state["1.running_var"] + 1e-5).sqrt() * state["1.weight"] + state["1.bias"]
    least = pre.sort(dim=1, descending=True).values[:, 3:4]
    z = torch.relu(pre) * (pre >= least)
    assert sae.encode(x).allclose(z.float(), atol=1e-5)
    atoms = F.normalize(state["dictionary._weights"], dim=1)
    assert sae(x).allclose((z @ atoms * (2.2 + 1e-5) - 0.03).float(), atol=1e-5)
    assert sae.metadata["epoch"] == 29 and sae.metadata["learning_rate"] == 1e-6


def test_what_lies_in_the_yaml_file_is_asked_for(tmp_path):
    torch.save(checkpoint(), tmp_path / "x.pth")
    with pytest.raises(DialectError) as found:
        load_dictionary(tmp_path / "x.pth")
    for asked in ("model=", "site=", "k=", "published are 32", "mean=", "SigLIP -0.030537348 and 2.2315154", "std="):
        assert asked in str(found.value)


@pytest.mark.parametrize("mean, std", [("none", 2.0), (0.0, "none"), (0.0, -1.0), (True, 1.0), (float("nan"), 1.0)])
def test_an_impossible_scale_is_refused(tmp_path, mean, std):
    with pytest.raises(DialectError, match="expected two numbers, std at least 0, or 'none' for both"):
        opened(tmp_path, checkpoint(), k=4, mean=mean, std=std)


def test_only_its_own_checkpoints_are_taken(tmp_path):
    """With more layers, other facts or another wrapping it is a file of overcomplete, which says why where it cannot read."""
    deeper = checkpoint(**{"encoder.mlp_blocks.0.0.weight": torch.eye(D)})
    other = {**checkpoint(), "loss": 0.5}
    for content, dialect in ((checkpoint(), "usae"), (deeper, "overcomplete"), (other, "overcomplete")):
        torch.save(content, tmp_path / "x.pth")
        source = Source(tmp_path / "x.pth")
        assert [name for name in DIALECTS if DIALECTS.get(name)().sniff(source)] == [dialect]
    with pytest.raises(DialectError, match="is a checkpoint of overcomplete .*say dialect='overcomplete'"):
        load_dictionary(tmp_path / "x.pth", dialect="usae")
    torch.save({**checkpoint(), "model_state_dict": [1]}, tmp_path / "x.pth")
    assert not DIALECTS.get("usae")().sniff(Source(tmp_path / "x.pth"))


def test_damaged_parts_are_named(tmp_path):
    answers = {"k": 4, "mean": "none", "std": "none"}
    with pytest.raises(DialectError, match=r"final_block.1 holds shapes .* expected four vectors of 20"):
        opened(tmp_path, checkpoint(**{"encoder.final_block.1.weight": torch.ones(3)}), **answers)
    with pytest.raises(DialectError, match="encoder has shape .3, 6., the dictionary .20, 6."):
        opened(tmp_path, checkpoint(**{"encoder.final_block.0.weight": torch.ones(3, D)}), **answers)
    with pytest.raises(DialectError, match="k=21 is no answer .* at most 20"):
        opened(tmp_path, checkpoint(), **answers | {"k": 21})


def test_half_precision_is_noted(tmp_path):
    half = checkpoint()
    half["model_state_dict"] = {name: value.half() for name, value in half["model_state_dict"].items()}
    notes = opened(tmp_path, half, k=4, mean="none", std="none").metadata["notes"]
    assert "stored in float16, and Universal SAE computes in it" in notes[1]
