"""ViT-Prisma: every module that its own loader opens, in one file with a pickled configuration or beside a JSON one.

PyPI has an old version without dictionaries, so `VLSAE_PEER_PRISMA` names a folder with the package `vit_prisma`.
"""

import os
import sys
from pathlib import Path

import torch

from tests.interop.make_fixtures import fresh, inputs, record

D, N = 8, 24
PEER = ("transcribed for inference: ViT-Prisma, sae/config.py and transcoders/transcoder.py of "
        "Prisma-Multimodal/ViT-Prisma@845f8eb, sae/sae.py of its fork xgao922/ViT-Prisma@55fc125, without their training "
        "parts")  # fmt: skip
PATHS = dict.fromkeys(("dataset_path", "dataset_train_path", "dataset_val_path", "checkpoint_path"), "data")
CASES = {
    "pickled_relu": {"layer_subtype": "hook_mlp_out"},
    "pickled_gated": {"architecture": "gated", "use_ghost_grads": False},
    "pickled_topk": {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 7}, "cls_token_only": True},
    "bare_relu_none": {"normalize_activations": "none"},
    "bare_topk": {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 7},
                  "model_name": "open-clip:laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K"},
    "bare_relu_constant_norm": {"normalize_activations": "constant_norm_rescale", "layer_subtype": "hook_resid_pre"},
    "bare_gated_constant_norm": {"normalize_activations": "constant_norm_rescale", "architecture": "gated",
                                 "use_ghost_grads": False},
    "transcoder_topk": {"is_transcoder": True, "d_out": D, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 7},
                        "layer_subtype": "hook_resid_mid"},
    "transcoder_relu": {"is_transcoder": True, "d_out": D, "normalize_activations": "constant_norm_rescale"},
}  # fmt: skip


def make(root: Path) -> None:
    sys.path.insert(0, os.environ["VLSAE_PEER_PRISMA"])
    from vit_prisma.sae.config import VisionModelSAERunnerConfig
    from vit_prisma.sae.sae import GatedSparseAutoencoder, SparseAutoencoder, StandardSparseAutoencoder
    from vit_prisma.transcoders.transcoder import Transcoder

    for name, facts in CASES.items():
        folder = fresh(root, name)
        config = VisionModelSAERunnerConfig(
            d_in=D, expansion_factor=N // D, device="cpu", hook_point_layer=5, **PATHS, **facts
        )
        gated = config.architecture == "gated"
        kind = Transcoder if config.is_transcoder else GatedSparseAutoencoder if gated else StandardSparseAutoencoder
        module = kind(config)
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator))
            module.b_dec.add_(0.5)
            (module.b_mag if gated else module.b_enc).sub_(1.0)  # so that some vectors have fewer than k positive
        if name.startswith("bare"):
            torch.save(module.state_dict(), folder / "weights.pt")
            config.save_config(str(folder / "config.json"))
        else:
            module.save_model(str(folder / "weights.pt"))
        again = SparseAutoencoder.load_from_pretrained(str(folder / "weights.pt")).eval()
        x = inputs(D)
        with torch.no_grad():
            codes = again.encode(x)[1]
            output = again(x)[0] if config.is_transcoder else again.decode(codes)
        families = {Transcoder: "transcoder", GatedSparseAutoencoder: "gated"}
        family = families.get(kind, "topk" if config.activation_fn_str == "topk" else "relu")
        record(folder, x, codes, output, peer=PEER, dialect="prisma", family=family)
