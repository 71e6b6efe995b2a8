"""Small checkpoints made by the real peers, with their own codes, for tests that run without them.

`pip install -e '.[peers]'`, then `python -m tests.interop.make_fixtures [PEER ...]` from the root of the repository.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.interop import peers

FIXTURES = Path(__file__).parent / "fixtures"


def inputs(d: int, n: int = 16, seed: int = 0) -> Tensor:
    """Vectors `[n, d]` with a mean and unequal norms, so that no bias or normalisation is lost unseen."""
    generator = torch.Generator().manual_seed(seed)
    scale = 0.5 + 2 * torch.rand(n, 1, generator=generator)
    return 0.7 + scale * torch.randn(n, d, generator=generator)


def fresh(root: Path, name: str) -> Path:
    """An empty folder for one case."""
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def record(
    folder: Path, x: Tensor, codes: Tensor, reconstruction: Tensor, *, peer: str, dialect: str, family: str,
    answers: Mapping[str, Any] | None = None, opens: str = ".",
) -> None:  # fmt: skip
    """Write what a peer computed beside its checkpoint.

    Args:
        folder: of the case, which holds the peer's files.
        x: `[n, d]`; codes: `[n, n_latents]`; reconstruction: `[n, d]`, all as the peer gives them.
        peer: library and version, or repository and commit.
        dialect: which of ours must recognise it; family: what must come out.
        answers: what the file does not say and a user must.
        opens: the path to give to `load_dictionary`, within the folder.
    """
    tensors = {"x": x, "codes": codes, "reconstruction": reconstruction}
    save_file({k: v.detach().float().contiguous() for k, v in tensors.items()}, folder / "expected.st")
    facts = {"peer": peer, "dialect": dialect, "family": family, "answers": dict(answers or {}), "opens": opens}
    (folder / "case.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def main(names: list[str]) -> None:
    known = [module.name for module in pkgutil.iter_modules(peers.__path__)]
    for name in names or known:
        importlib.import_module(f"tests.interop.peers.{name}").make(FIXTURES / name)


if __name__ == "__main__":
    main(sys.argv[1:])
