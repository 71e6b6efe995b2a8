"""A model of overcomplete before release 0.1, whose encoder and dictionary have other names.

`VLSAE_PEER_OVERCOMPLETE_OLD` is a folder with the unpacked wheel of release 0.0.2.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from tests.interop.make_fixtures import fresh, inputs, record
from tests.interop.peers.overcomplete import D, N, library, trained


def make(root: Path) -> None:
    library()  # the stand-in for matplotlib's function
    for name in [name for name in sys.modules if name.partition(".")[0] == "overcomplete"]:
        del sys.modules[name]
    sys.path.insert(0, os.environ["VLSAE_PEER_OVERCOMPLETE_OLD"])
    import overcomplete.sae.base as old

    torch.manual_seed(0)
    model = _Triple(old.SAE(D, N))
    trained(model)
    folder, x = fresh(root, "sae"), inputs(D, n=8)
    torch.save(model.sae.state_dict(), folder / "model.pt")
    again = old.SAE(D, N)
    again.load_state_dict(torch.load(folder / "model.pt"))
    again.eval()
    with torch.no_grad():
        codes, reconstruction = again(x)
    record(folder, x, codes, reconstruction, peer="overcomplete 0.0.2", dialect="overcomplete", family="relu",
           answers={"family": "relu"})  # fmt: skip
    sys.path.pop(0)
    for name in [name for name in sys.modules if name.partition(".")[0] == "overcomplete"]:
        del sys.modules[name]


class _Triple(torch.nn.Module):
    """The old model with the three results of the new ones."""

    def __init__(self, sae):
        super().__init__()
        self.sae = sae

    def forward(self, x):
        codes, reconstruction = self.sae(x)
        return codes, codes, reconstruction
