"""dictionary_learning 0.1.0: every class that its own loader opens, and the layouts of files that people have."""

import json
from pathlib import Path

import torch

from tests.interop.make_fixtures import fresh, inputs, record

D, N, K = 8, 24, 3
PEER = "dictionary-learning 0.1.0"


def model(kind: str, d: int = D, n: int = N):
    """A module of the library with random weights, atoms of unequal norm and no bias at zero."""
    from dictionary_learning import dictionary
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    generator = torch.Generator().manual_seed(3)
    made = {
        "AutoEncoderTopK": lambda: AutoEncoderTopK(d, n, K),
        "BatchTopKSAE": lambda: BatchTopKSAE(d, n, K),
        "MatryoshkaBatchTopKSAE": lambda: MatryoshkaBatchTopKSAE(d, n, K, [n // 8, n // 4, n - n // 8 - n // 4]),
    }
    module = made[kind]() if kind in made else getattr(dictionary, kind)(d, n)  # fmt: skip
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator))
        for name, shift in (("bias", 0.5), ("b_dec", 0.5), ("decoder_bias", 0.5)):
            if isinstance(getattr(module, name, None), torch.nn.Parameter):
                getattr(module, name).add_(shift)
        if "threshold" in dict(module.named_parameters()):
            module.threshold.copy_(torch.rand(n, generator=generator) * 3)
        elif hasattr(module, "threshold"):
            module.threshold.fill_(1.5)
    return module


def config(kind: str, module, **more) -> dict:
    """What a trainer of the library writes."""
    trainer = {"trainer_class": "ATrainer", "dict_class": kind, "lr": 1e-3, "steps": 10, "seed": 0,
               "activation_dim": module.activation_dim, "dict_size": module.dict_size, "device": "cpu",
               "layer": 3, "lm_name": "EleutherAI/pythia-70m-deduped", "wandb_name": kind,
               "submodule_name": "resid_post_layer_3"}  # fmt: skip
    if hasattr(module, "k"):
        trainer["k"] = module.k.item()
    if hasattr(module, "group_sizes"):
        trainer["group_sizes"] = module.group_sizes.tolist()
    return {"trainer": trainer | more, "buffer": {"d_submodule": module.activation_dim, "io": "out"}}


def save(folder: Path, module, facts: dict | None, weights: str = "ae.pt", without: tuple[str, ...] = ()) -> None:
    (folder / weights).parent.mkdir(exist_ok=True)
    torch.save({k: v for k, v in module.state_dict().items() if k not in without}, folder / weights)
    if facts is not None:
        (folder / "config.json").write_text(json.dumps(facts, indent=4))


def computed(module, d: int = D):
    x = inputs(d)
    with torch.no_grad():
        codes = module.eval().encode(x)
        return x, codes, module.decode(codes)


def make(root: Path) -> None:
    from dictionary_learning.utils import load_dictionary

    families = {"AutoEncoder": "relu", "AutoEncoderNew": "relu", "GatedAutoEncoder": "gated",
                "JumpReluAutoEncoder": "jumprelu", "AutoEncoderTopK": "topk", "BatchTopKSAE": "batch_topk",
                "MatryoshkaBatchTopKSAE": "nested_dictionary"}  # fmt: skip

    def done(folder, kind, module, d=D, **more):
        record(folder, *computed(module, d), peer=PEER, dialect="dictionary_learning", family=families[kind], **more)

    for kind in families:
        folder = fresh(root, kind)
        save(folder, model(kind), config(kind, model(kind)))
        done(folder, kind, load_dictionary(str(folder), "cpu")[0])
    for kind in ("AutoEncoder", "AutoEncoderTopK", "GatedAutoEncoder"):
        folder = fresh(root, f"square_{kind}")
        save(folder, model(kind, 12, 12), config(kind, model(kind, 12, 12)))
        done(folder, kind, load_dictionary(str(folder), "cpu")[0], 12)
    for kind, answers in (("AutoEncoderTopK", {"dict_class": "AutoEncoderTopK"}), ("MatryoshkaBatchTopKSAE", {})):
        folder = fresh(root, f"state_dict_{kind}")
        save(folder, model(kind), None)
        module = type(model(kind)).from_pretrained(str(folder / "ae.pt"))
        done(folder, kind, module, answers=answers)
    _sae_for_vlm(root, done)
    _checkpoint(root, done)
    for kind in ("GatedAutoEncoder", "BatchTopKSAE"):
        _backup(root, kind, done)
    _with_bias_off_the_input(root, done)


def _sae_for_vlm(root: Path, done) -> None:
    """The structure of its published files; the code is a copy of the library's."""
    empty = {"layer": "", "lm_name": "", "submodule_name": ""}
    for kind, spelling in (("BatchTopKSAE", "BatchTopKSAE"), ("MatryoshkaBatchTopKSAE", "MatroyshkaBatchTopKSAE")):
        folder = fresh(root, f"sae_for_vlm_{kind}")
        module = model(kind)
        save(folder, module, config(spelling, module, **empty), weights="ae_100000.pt")
        done(folder, kind, type(module).from_pretrained(str(folder / "ae_100000.pt"), k=K), opens="ae_100000.pt")


def _checkpoint(root: Path, done) -> None:
    """A checkpoint within a run, before the threshold was ever set, whose configuration lies one folder up."""
    folder = fresh(root, "checkpoint")
    module = model("BatchTopKSAE")
    module.threshold.fill_(-1.0)
    save(folder, module, config("BatchTopKSAE", module), weights="checkpoints/ae_20.pt")
    again = type(module).from_pretrained(str(folder / "checkpoints/ae_20.pt"))
    again.threshold.fill_(0.75)
    done(folder, "BatchTopKSAE", again, opens="checkpoints/ae_20.pt", answers={"threshold": 0.75})


def _backup(root: Path, kind: str, done) -> None:
    """What the library after 0.1.0 leaves of a run that was interrupted; `scale_biases` is what the run's end does."""
    folder = fresh(root, f"backup_{kind}")
    module, factor = model(kind), 2.5
    optimizer = torch.optim.Adam(module.parameters())
    module(inputs(D)).sum().backward()
    optimizer.step()
    facts = config(kind, module)
    content = {"step": 40, "ae": module.state_dict(), "optimizer": optimizer.state_dict(), "config": facts["trainer"],
               "norm_factor": factor}  # fmt: skip
    torch.save(content, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps(facts, indent=4))
    with torch.no_grad():
        module.scale_biases(factor)
    done(folder, kind, module)


def _with_bias_off_the_input(root: Path, done) -> None:
    """What the class computes for weights from SAELens; the file cannot say so."""
    folder = fresh(root, "JumpReluAutoEncoder_b_dec")
    module = model("JumpReluAutoEncoder")
    save(folder, module, config("JumpReluAutoEncoder", module))
    again = type(module).from_pretrained(str(folder / "ae.pt"))
    again.apply_b_dec_to_input = True
    done(folder, "JumpReluAutoEncoder", again, answers={"apply_b_dec_to_input": True})
