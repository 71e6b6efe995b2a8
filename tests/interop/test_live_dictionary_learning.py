"""dictionary_learning itself, both ways; its own loader opens what we write, and its trainer writes what we open."""

import json
import shutil

import pytest
import torch

from tests.interop.make_fixtures import inputs
from tests.interop.test_dictionary_learning import FIXTURES, OURS, UNKNOWN, D, made
from vlsae.interop.dialect import DIALECTS
from vlsae.interop.load import load_dictionary

pytestmark = pytest.mark.peers
pytest.importorskip("dictionary_learning")

TRAINERS = {"StandardTrainer": "relu", "StandardTrainerAprilUpdate": "relu", "PAnnealTrainer": "relu",
            "GatedSAETrainer": "gated", "GatedAnnealTrainer": "gated", "JumpReluTrainer": "jumprelu", "TopKTrainer": "topk",
            "BatchTopKTrainer": "batch_topk", "MatryoshkaBatchTopKTrainer": "nested_dictionary"}  # fmt: skip


def close(a, b):
    return (a - b).abs().max() <= 2e-6 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("family", OURS)
def test_the_library_opens_what_we_write(tmp_path, family, unit):
    from dictionary_learning.utils import load_dictionary as theirs_of

    dictionary = made(family, **OURS[family])
    if unit:
        dictionary.normalise_atoms()
    DIALECTS.get("dictionary_learning")().write(dictionary, tmp_path)
    theirs, _ = theirs_of(str(tmp_path), "cpu")
    x = inputs(D, 64)
    with torch.no_grad():
        z = theirs.encode(x)
        assert torch.equal(z > 0, dictionary.encode(x) > 0) and close(dictionary.encode(x), z)
        assert close(dictionary(x), theirs(x))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_we_open_what_its_training_writes(tmp_path, trainer, normalize):
    """With scaled activations too: the biases that are scaled back make the file read raw ones."""
    from dictionary_learning import trainers, training
    from dictionary_learning.trainers import matryoshka_batch_top_k, standard
    from dictionary_learning.utils import load_dictionary as theirs_of

    modules = (trainers, standard, matryoshka_batch_top_k)
    kind = next(getattr(module, trainer) for module in modules if hasattr(module, trainer))
    options = {"trainer": kind, "activation_dim": D, "dict_size": 12, "layer": 1, "lm_name": "a", "device": "cpu"}
    options |= {"seed": 0, "submodule_name": "b"} if trainer != "GatedAnnealTrainer" else {"seed": 0}
    options |= {"k": 3} if "TopK" in trainer else {}
    options |= {"threshold_start_step": 2} if "TopK" in trainer else {}
    options |= {"group_fractions": [0.25, 0.75]} if trainer.startswith("Matryoshka") else {}
    options |= {"steps": 12, "warmup_steps": 2}
    data = [4 * inputs(D, 64, seed=i) for i in range(12)]
    options |= {"sparsity_warmup_steps": 2} if "TopK" not in trainer else {}
    training.trainSAE(data, [options], steps=12, save_dir=str(tmp_path), save_steps=[8], normalize_activations=normalize,
                      device="cpu")  # fmt: skip
    theirs, _ = theirs_of(str(tmp_path / "trainer_0"), "cpu")
    ours = load_dictionary(tmp_path / "trainer_0", **UNKNOWN)
    assert ours.family == TRAINERS[trainer]
    x = data[0]
    with torch.no_grad():
        z = theirs.encode(x)
        assert torch.equal(z > 0, ours.encode(x) > 0) and bool((z > 0).any()) and close(ours.encode(x), z)
        assert close(ours(x), theirs(x))
    checkpoint = load_dictionary(tmp_path / "trainer_0" / "checkpoints" / "ae_8.pt", **UNKNOWN)
    assert checkpoint.family == ours.family and checkpoint.metadata["trainer"]["lm_name"] == "a"


@pytest.mark.parametrize("family", OURS)
def test_each_class_opens_what_we_write_without_a_configuration_and_in_its_other_settings(tmp_path, family):
    """Scripts call `from_pretrained` of a class, whose defaults differ from those of the loader of folders."""
    from dictionary_learning import dictionary as plain
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k

    dictionary = made(family, **OURS[family])
    DIALECTS.get("dictionary_learning")().write(dictionary, tmp_path)
    name = json.loads((tmp_path / "config.json").read_text())["trainer"]["dict_class"]
    kind = next(getattr(m, name) for m in (top_k, batch_top_k, matryoshka_batch_top_k, plain) if hasattr(m, name))
    x = inputs(D, 64)
    for settings in ({}, {"device": "cpu"}, *([{"k": 3}] if "k" in OURS[family] else [])):
        theirs = kind.from_pretrained(str(tmp_path / "ae.pt"), **settings)
        with torch.no_grad():
            assert close(dictionary.encode(x), theirs.encode(x)) and close(dictionary(x), theirs(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["AutoEncoder", "JumpReluAutoEncoder", "BatchTopKSAE"])
def test_the_library_computes_in_float32_whatever_a_file_holds(tmp_path, name, dtype):
    from dictionary_learning.utils import load_dictionary as theirs_of

    shutil.copytree(FIXTURES / name, tmp_path / name)
    state = torch.load(tmp_path / name / "ae.pt")
    if name == "JumpReluAutoEncoder":
        state["threshold"] -= 2  # those below 0 let every positive code through
    torch.save({k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}, tmp_path / name / "ae.pt")
    theirs, _ = theirs_of(str(tmp_path / name), "cpu")
    ours, x = load_dictionary(tmp_path / name, **UNKNOWN), inputs(8, 64)
    with torch.no_grad():
        z = theirs.encode(x)
        assert z.dtype == torch.float32 and torch.equal(z > 0, ours.encode(x) > 0)
        assert close(ours.encode(x), z) and close(ours(x), theirs(x))
