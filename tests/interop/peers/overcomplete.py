"""Models of the library overcomplete, trained for a few steps: their state dicts, pickles and training checkpoints."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch

from tests.interop.make_fixtures import fresh, inputs, record

D, N, K = 8, 24, 4


def library():
    """`overcomplete.sae`, which asks matplotlib for a function that newer releases of that no longer have."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    if not hasattr(plt.cm, "get_cmap"):
        plt.cm.get_cmap = lambda name=None, lut=None: mpl.colormaps[name or "viridis"]
    import overcomplete.sae

    return overcomplete.sae


def trained(model, steps: int = 3):
    """The model after some steps of Adam: weights are off where its dictionary layer puts them, as in any file of training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, values in model.named_parameters():
            if name.endswith("bias"):
                values.copy_(0.3 * torch.randn(values.shape, generator=generator))
            elif name == "thresholds":
                values.copy_(torch.randn(values.shape, generator=generator) - 0.5)
            elif name == "dictionary.Relax":
                values.copy_(0.5 * torch.randn(values.shape, generator=generator))
            elif name == "dictionary.W":
                values.copy_(torch.rand(values.shape, generator=generator) - 0.3)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    model.train()
    for step in range(steps):
        x = inputs(D, n=64, seed=10 + step)
        model(x)[2].sub(x).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    return model


def seeded(make, **arguments):
    """A trained model of a class from a fixed start."""
    torch.manual_seed(0)
    return trained(make(D, N, **arguments))


def save(
    root: Path, name: str, model, becomes: str, again=None, wrap=None, **answers,
) -> None:  # fmt: skip
    """A model as a pickle, or, with `again` as a fresh object for it, as the state dict that this one loads."""
    x = inputs(D, n=8)
    folder = fresh(root, name)
    if again is None:
        torch.save(model, folder / "model.pt")
        again = torch.load(folder / "model.pt", weights_only=False)
    else:
        state = {key: value.clone() for key, value in model.state_dict().items()}
        torch.save(wrap(state) if wrap else state, folder / "model.pt")
        again.load_state_dict(state)
        again.running_threshold = getattr(model, "running_threshold", None)
    again.train()
    again.eval()
    with torch.no_grad():
        _, codes, reconstruction = again(x)
    record(folder, x, codes, reconstruction, peer=f"overcomplete {version('overcomplete')}", dialect="overcomplete",
           family=becomes, answers=answers)  # fmt: skip


def make(root: Path) -> None:
    sae = library()
    points = torch.randn(10, D, generator=torch.Generator().manual_seed(3))
    identity, multiplied = {"normalization": "identity"}, {"normalization": "l1", "use_multiplier": True}

    save(root, "sae", seeded(sae.SAE), "relu", sae.SAE(D, N), family="relu")
    save(root, "sae-identity", seeded(sae.SAE, dictionary_params=identity), "relu",
         sae.SAE(D, N, dictionary_params=identity), family="relu", normalization="identity")  # fmt: skip
    save(root, "sae-l1-pickle", seeded(sae.SAE, dictionary_params=multiplied), "relu")
    save(root, "topk", seeded(sae.TopKSAE, top_k=K), "topk", sae.TopKSAE(D, N, top_k=K),
         wrap=lambda state: {"epoch": 3, "loss": 0.25, "model": state}, family="topk", k=K)  # fmt: skip
    save(root, "topk-pickle", seeded(sae.TopKSAE, top_k=K).eval(), "topk")
    save(
        root, "topk-max-l2-pickle", seeded(sae.TopKSAE, top_k=K, dictionary_params={"normalization": "max_l2"}), "topk"
    )
    norm = {"encoder_module": "mlp_bn_1"}
    save(root, "topk-batch-norm", seeded(sae.TopKSAE, top_k=K, **norm), "topk", sae.TopKSAE(D, N, top_k=K, **norm),
         family="topk", k=K)  # fmt: skip
    save(root, "topk-batch-norm-pickle", seeded(sae.TopKSAE, top_k=K, **norm), "topk")
    torch.manual_seed(0)
    save(root, "topk-tied-pickle", trained(sae.TopKSAE(D, N, top_k=K).tied(bias=True)), "topk")
    save(root, "sae-tied", trained(sae.SAE(D, N).tied()), "relu", sae.SAE(D, N).tied(), family="relu")
    save(root, "topk-untied", trained(sae.TopKSAE(D, N, top_k=K).untied(bias=True)), "topk",
         sae.TopKSAE(D, N, top_k=K).untied(bias=True), family="topk", k=K)  # fmt: skip
    batch = seeded(sae.BatchTopKSAE, top_k=64 * K)
    save(root, "batch-topk", batch, "batch_topk", sae.BatchTopKSAE(D, N, top_k=64 * K), family="batch_topk", k=K,
         threshold=batch.running_threshold.item())  # fmt: skip
    save(root, "batch-topk-pickle", batch, "batch_topk", k=K)
    save(root, "jump", seeded(sae.JumpSAE), "jumprelu", sae.JumpSAE(D, N))
    save(root, "jump-pickle", seeded(sae.JumpSAE, kernel="gaussian", bandwidth=0.02), "jumprelu")
    archetypal = {"points": points, "delta": 0.6}
    save(root, "ra-topk", seeded(sae.RATopKSAE, top_k=K, **archetypal), "archetypal",
         sae.RATopKSAE(D, N, top_k=K, **archetypal), family="topk", k=K, delta=0.6)  # fmt: skip
    save(root, "ra-topk-pickle", seeded(sae.RATopKSAE, top_k=K, **archetypal), "archetypal")
    save(root, "ra-jump", seeded(sae.RAJumpSAE, **archetypal), "jumprelu", sae.RAJumpSAE(D, N, **archetypal), delta=0.6)
    save(root, "mp", seeded(sae.MpSAE, k=K), "matching_pursuit", sae.MpSAE(D, N, k=K), family="matching_pursuit", k=K)
    save(root, "mp-pickle", seeded(sae.MpSAE, k=K, dropout=0.1), "matching_pursuit")
    save(root, "omp-pickle", seeded(sae.OMPSAE, k=1), "matching_pursuit")
