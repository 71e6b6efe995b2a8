"""dictionary_learning itself, both ways; its own loader opens what we write, and its trainer writes what we open."""

import pytest
import torch

from tests.interop.make_fixtures import inputs
from tests.interop.test_dictionary_learning import OURS, UNKNOWN, D, made
from vlsae.interop.dialect import DIALECTS
from vlsae.interop.load import load_dictionary

pytestmark = pytest.mark.peers
pytest.importorskip("dictionary_learning")

TRAINERS = {"StandardTrainer": "relu", "PAnnealTrainer": "relu", "GatedSAETrainer": "gated", "GatedAnnealTrainer": "gated",
            "JumpReluTrainer": "jumprelu", "TopKTrainer": "topk", "BatchTopKTrainer": "batch_topk",
            "MatryoshkaBatchTopKTrainer": "nested_dictionary"}  # fmt: skip


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
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.utils import load_dictionary as theirs_of

    kind = MatryoshkaBatchTopKTrainer if trainer.startswith("Matryoshka") else getattr(trainers, trainer)
    options = {"trainer": kind, "activation_dim": D, "dict_size": 12, "layer": 1, "lm_name": "a", "device": "cpu"}
    options |= {"seed": 0, "submodule_name": "b"} if trainer != "GatedAnnealTrainer" else {"seed": 0}
    options |= {"k": 3} if "TopK" in trainer else {}
    options |= {"threshold_start_step": 2} if "TopK" in trainer else {}
    options |= {"group_fractions": [0.25, 0.75]} if trainer.startswith("Matryoshka") else {}
    options |= {"steps": 12, "warmup_steps": 2}
    data = [4 * inputs(D, 64, seed=i) for i in range(12)]
    if trainer in ("StandardTrainer", "GatedSAETrainer", "JumpReluTrainer", "PAnnealTrainer", "GatedAnnealTrainer"):
        options |= {"sparsity_warmup_steps": 2}
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
