"""From any dictionary that can be opened to another project's files, read again and compared before they take their place."""

from __future__ import annotations

import copy
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlsae.dictionaries.base import Dictionary
from vlsae.interop.answers import UNKNOWN
from vlsae.interop.dialect import DIALECTS, Dialect, DialectError
from vlsae.interop.load import load_dictionary, open_knowing

TOLERANCE = 1e-6  # of the largest value: float32 sums in another order
COMPARED = 256  # vectors that both dictionaries encode
LENGTHS = (0.3, 3.0, 30.0, 300.0, 3000.0)  # in units of the decoder's bias, or of 1
ROUNDING = 1e-6  # by which an input is changed to see whether a latent stands at its threshold
OUR_OWN = ("opened_from", "notes")  # metadata about the opening, not about the dictionary


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes:
        out: the folder; to: the dialect.
        family, becomes: what it was and what it is there, in our names.
        lost: what the files do not say, in sentences; empty where nothing is lost.
        compared: vectors on which codes and reconstructions were compared; error: largest difference over largest value.
    """

    out: Path
    to: str
    family: str
    becomes: str
    lost: Sequence[str]
    compared: int
    error: float

    def summary(self) -> str:
        """The same in words."""
        kept = (f"Written to {self.out} and read again: the same active latents on {self.compared} vectors, values equal to "
                f"{self.error:.1e} of the largest.")  # fmt: skip
        lost = "".join(f"\n  lost: {sentence}" for sentence in self.lost) or "\n  nothing is lost"
        return kept + lost


@torch.no_grad()
def convert(
    path: str | Path, out: str | Path, to: str = "saelens", *, dialect: str | None = None, seed: int = 0, **answers: Any
) -> Conversion:
    """Open a dictionary, write it as another project reads it, and make sure that it is the same there.

    The files are written into a folder beside `out`, opened again and compared on random vectors, and only then take their
    place; nothing stays behind where that fails.

    Args:
        path: whatever `load_dictionary` opens.
        out: a folder that does not exist yet, or is empty.
        to: whose format, one of `DIALECTS`.
        dialect: whose format `path` is, where that cannot be told from the file.
        seed: of the vectors.
        **answers: what the file leaves open, as for `load_dictionary`.

    Returns:
        A `Conversion`, which says what was lost.

    Raises:
        DialectError: for what cannot be opened, what the other format cannot express, an `out` that is taken, and a
            dictionary that is another one when read again.

    Example:
        >>> import tempfile
        >>> from vlsae.dictionaries.topk import TopKDictionary
        >>> folder = TopKDictionary(d=4, n_latents=8, k=2).save(tempfile.mkdtemp())
        >>> convert(folder, folder / "again", to="vlsae").lost
        []
    """
    writer, out = _writer(to), Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DialectError(
            f"{out} exists already, and conversion replaces nothing; give another folder, or remove it first."
        )
    dictionary = load_dictionary(path, dialect=dialect, **answers)
    with _appearing(out) as folder:
        writer.write(dictionary, folder)
        known = {"k": getattr(dictionary, "k", None), **dictionary.settings, **answers, **_named(dictionary)}
        try:
            again, told = open_knowing(
                folder, {}, {name: value for name, value in known.items() if value is not None}, to
            )
        except DialectError as error:
            raise DialectError(
                f"What was written for {writer.project} cannot be read again, and was not kept: {error}"
            ) from error
        n, error, folded = _held(dictionary, again, _vectors(dictionary, seed), f"{writer.project} at {out}")
        lost = _lost(dictionary, again, told, writer, folded)
    return Conversion(out, to, dictionary.family, again.family, lost, n, error)


def writers() -> list[str]:
    """Dialects that can be written."""
    return [name for name in DIALECTS if DIALECTS.get(name).write is not Dialect.write]


def _writer(name: str) -> Dialect:
    if name not in writers():
        raise DialectError(f"Nothing is written as {name!r}; choose one of {', '.join(writers())}.")
    return DIALECTS.get(name)()


def _named(dictionary: Dictionary) -> dict[str, Any]:
    return {name: dictionary.metadata.get(name) or UNKNOWN for name in ("model", "site")}


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name when the block ends without an error, else goes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".partial-{secrets.token_hex(4)}-{out.name}"
    partial.mkdir()
    try:
        yield partial
        os.replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _held(dictionary: Dictionary, again: Dictionary, x: Tensor, where: str) -> tuple[int, float, bool]:
    """What `_compare` says, and whether codes are those of the dictionary with its input transform folded into the weights.

    A format without transforms has it in its weights, and its codes either as they were or in the activations' units.
    """
    try:
        return *_compare(dictionary, again, x, where), False
    except DialectError:
        if again.transform.kind == dictionary.transform.kind:
            raise
        folded = copy.deepcopy(dictionary)
        try:
            folded.fold_transform()
        except ValueError:
            folded = None
        if folded is None:
            raise
    return *_compare(folded, again, x, where), True


def _vectors(dictionary: Dictionary, seed: int) -> Tensor:
    """Vectors `[COMPARED, d]` around the dictionary's origin, half of them sums of atoms, long enough that most have codes."""
    for length in LENGTHS:
        x = _around_origin(dictionary, length, torch.Generator().manual_seed(seed))
        codes = dictionary.encode_sparse(x)
        if len(codes.rows[codes.values != 0].unique()) > COMPARED / 2:
            break
    return x


def _around_origin(dictionary: Dictionary, length: float, generator: torch.Generator) -> Tensor:
    """Lengths spread over two decades around `length`."""
    d, n, half = dictionary.d, dictionary.n_latents, COMPARED // 2
    origin = dictionary.b_dec.detach().float().cpu()
    size = max(1.0, float(origin.square().mean().sqrt())) * length
    size = size * 10 ** (2 * torch.rand(COMPARED, 1, generator=generator) - 1)
    noise = torch.randn(half, d, generator=generator)
    chosen = torch.randint(n, (half, min(n, 4)), generator=generator)
    weights = torch.rand(chosen.shape, generator=generator)
    sums = (weights[..., None] * nn.functional.normalize(dictionary.atoms.float().cpu(), dim=1)[chosen]).sum(1) * d**0.5
    inner = origin + size * torch.cat([noise, sums])
    return dictionary.transform.inverse(inner, like=inner).to(dictionary.W_dec.dtype)


def _compare(ours: Dictionary, theirs: Dictionary, x: Tensor, where: str) -> tuple[int, float]:
    """Vectors compared and the largest difference over the largest value.

    A vector on which our own active latents change when it is rounded otherwise decides nothing, and is left out.

    Raises:
        DialectError: where active latents or values differ, or nothing could be compared.
    """
    if (theirs.d, theirs.n_latents) != (ours.d, ours.n_latents):
        raise DialectError(f"{where} has size {theirs.n_latents} x {theirs.d}, not {ours.n_latents} x {ours.d}; nothing was "
                           "kept. Please report it.")  # fmt: skip
    z = ours.encode_sparse(x).dense()
    support = z != 0
    firm = torch.ones(len(x), dtype=torch.bool)
    for seed in (0, 1):
        rounded = x * (1 + ROUNDING * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x))
        firm &= ((ours.encode_sparse(rounded).dense() != 0) == support).all(1)
    if not support[firm].any():
        raise DialectError(f"None of {len(x)} random vectors has a code that could be compared; {where} was not kept. Is the "
                           "dictionary trained?")  # fmt: skip
    x, z = x[firm], z[firm]
    again = theirs.encode_sparse(x.to(theirs.W_dec.dtype)).dense()
    other = int(((again != 0) != (z != 0)).any(1).sum())
    pairs = ((again, z), (theirs.decode(again, like=x), ours.decode(z, like=x)))
    error = max(
        float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-300)) for a, b in pairs
    )
    allowed = TOLERANCE if ours.W_dec.dtype == theirs.W_dec.dtype else float(torch.finfo(ours.W_dec.dtype).eps)
    if other or not error <= allowed:
        raise DialectError(
            f"{where} is another dictionary when read again: {other} of {len(x)} vectors have other active latents, and values "
            f"differ by {error:.1e} of the largest (at most {allowed:.0e} is rounding). It was not kept; please report it."
        )
    return len(x), error


def _lost(
    dictionary: Dictionary, again: Dictionary, told: dict[str, Any], writer: Dialect, folded: bool
) -> list[str]:  # fmt: skip
    """What is not in the files, in sentences."""
    lost = []
    if again.family != dictionary.family:
        lost.append(f"the family: it is {again.family!r} there, {dictionary.family!r} here, with the same codes.")
    if again.transform.kind != dictionary.transform.kind:
        units = "codes are in the units of the activations" if folded else "codes are the same"
        lost.append(f"the input transform {dictionary.transform.kind!r}: it is in the weights now, and {units}.")
    for name, value in dictionary.settings.items():
        if name not in again.settings and name not in told:
            lost.append(f"the setting {name}={value}, which does not change the codes there.")
    if again.W_dec.dtype != dictionary.W_dec.dtype:
        lost.append(f"the precision {dictionary.W_dec.dtype}: weights are {again.W_dec.dtype} there.")
    if told:
        said = ", ".join(f"{name}={value}" for name, value in told.items())
        lost.append(f"what has to be said when it is opened again: {said}.")
    gone = [name for name, value in dictionary.metadata.items()
            if value is not None and name not in (*OUR_OWN, *told) and again.metadata.get(name) != value]  # fmt: skip
    if gone:
        lost.append(f"metadata that {writer.project} has no place for: {', '.join(gone)}.")
    return lost
