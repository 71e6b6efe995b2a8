"""Files of tensors from anyone: what they hold, without running code and without more memory than they have bytes."""

from __future__ import annotations

import io
import json
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlsae.pickles import PickleError, leaves
from vlsae.stored import Stored, WeightFileError, memory, shortened
from vlsae.torch_files import NUMBERS, read_torch_file

JSON_AT_MOST = 8 * 2**20  # bytes; as Python objects it is up to thirty times as large
LIST_AT_MOST = 2**24  # bytes of an archive's list of records, of its pickle, or of a safetensors header
DEFLATED_AT_MOST = 40  # times its size in the file; weights shrink far less
FREE = 2**26  # bytes that may be deflated to any size
ARRAYS_AT_MOST = 10_000  # in an .npz
INTEGER_AT_MOST = 2**128  # in a configuration; seeds are the largest that anyone writes
DAMAGED = (zipfile.BadZipFile, NotImplementedError, OSError, zlib.error, struct.error, RuntimeError, EOFError, ValueError,
           OverflowError, LookupError)  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        WeightFileError: for what is no JSON object, is longer than 8 MB, or holds more than configurations do: 50 levels,
            200,000 values, or integers beyond 128 bits.
    """
    try:
        _must_be_a_file(path)
        if path.stat().st_size > JSON_AT_MOST:
            raise WeightFileError(f"{path} has {path.stat().st_size:,} bytes; a configuration is far smaller.")
        return json_object(path.read_bytes(), path)
    except OSError as error:
        raise WeightFileError(f"{path} cannot be read: {error}.") from error


def json_object(text: bytes, path: Path) -> dict[str, Any]:
    """The same for text that has been read."""
    try:
        value = json.loads(text.decode("utf-8-sig"))
        for name, part in leaves(value):
            if isinstance(part, int) and abs(part) > INTEGER_AT_MOST:
                raise ValueError(f"{name[:100]} is a number of {part.bit_length()} bits")
    except (ValueError, RecursionError) as error:
        raise WeightFileError(
            f"{path} is no whole JSON file ({shortened(str(error), 200)}); download or write it again."
        ) from error
    if not isinstance(value, dict):
        raise WeightFileError(f"{path} holds a JSON {type(value).__name__}; expected an object with names.")
    return value


def read_content(path: Path, classes: Sequence[str] = ()) -> Any:
    """What a weight file holds, with every tensor as a `Stored`.

    Args:
        path: a .safetensors file, what `torch.save` wrote, or an .npz; a first line of JSON is passed over.
        classes: regular expressions of further names that a pickle may call. They are not imported: an object is an
            `Inert` with the attributes that were stored.

    Returns:
        For .safetensors and .npz a dictionary of `Stored`; else whatever was saved.

    Raises:
        WeightFileError: for a file that is missing, damaged or of another kind, that calls other names, or whose header
            promises more than the file holds.
    """
    try:
        _must_be_a_file(path)
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise WeightFileError(f"{path} cannot be read: {error}.") from error
    kind = "safetensors" if path.suffix == ".safetensors" else "weight"
    try:
        if kind == "safetensors" or start[8:] == b"{":
            return _safetensors(path, start)
        if not zipfile.is_zipfile(path):
            raise WeightFileError(f"{path} is no whole weight file: {_what(start)}.")
        with _archive(path) as archive:
            return _zip(path, archive, classes)
    except WeightFileError:
        raise
    except PickleError as error:
        raise WeightFileError(f"{path} is no whole weight file: its pickle cannot be followed, {error}.") from error
    except (SafetensorError, *DAMAGED) as error:
        raise WeightFileError(
            f"{path} is no whole {kind} file ({shortened(str(error), 200)}); download or write it again."
        ) from error


def _must_be_a_file(path: Path) -> None:
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise WeightFileError(f"{path} is a folder or a device; expected a file.")


def _what(start: bytes) -> str:
    if not start:
        return "it is empty"
    if start[:1] == b"\x80":
        return (
            "it is a bare pickle, as torch wrote before 1.6 and pickle.dump writes; if you trust its source, open it with "
            "torch.load(file, weights_only=False), or by pickle.load, and save what it holds again with torch.save"
        )
    if start[:2] == b"\x1f\x8b":
        return "it is compressed with gzip; unpack it first"
    if start[:1] == b"<":
        return "it is a web page, as a failed download leaves it"
    if start.startswith(b"version "):
        return "it is a git-lfs pointer; fetch the file itself with `git lfs pull`"
    return f"it begins with {start!r} and is neither safetensors, a file of torch.save, nor .npz, or it is cut off"


def _safetensors(path: Path, start: bytes) -> dict[str, Stored]:
    kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
             "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}  # fmt: skip
    if start[8:] != b"{":
        raise WeightFileError(f"{path} is no whole safetensors file: {_what(start)}.")
    n = int.from_bytes(start[:8], "little")
    if n > LIST_AT_MOST:
        raise WeightFileError(f"{path} is no whole safetensors file: its header is too long.")
    with safe_open(path, framework="pt") as file:  # checks that the header is whole and all tensors lie in the file
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no dictionary)
        found = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    with open(path, "rb") as file:
        header = json.loads(file.read(8 + n)[8:])

    def reader(name: str, shape: tuple[int, ...], kind: str) -> Callable[[], Tensor]:
        def read() -> Tensor:  # not through `safe_open`, which reads the header anew for each tensor
            try:
                if kind not in kinds:
                    raise ValueError(f"its numbers are of the kind {kind}")
                return _numbers(path, 8 + n + header[name]["data_offsets"][0], shape, kinds[kind])
            except (*DAMAGED, TypeError) as error:
                raise WeightFileError(f"{path}: {name[:100]} cannot be read ({shortened(str(error), 200)}).") from error

        return read

    return {name: Stored(shape, kinds.get(kind), reader(name, shape, kind)) for name, (shape, kind) in found.items()}


def _numbers(path: Path, begin: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    size = math.prod(shape) * dtype.itemsize
    buffer = memory(size)
    with open(path, "rb") as file:
        file.seek(begin)
        if file.readinto(buffer) != size:
            raise EOFError("it is cut off")
    return (torch.from_numpy(buffer).view(dtype) if size else torch.empty(0, dtype=dtype)).reshape(shape)


class _Guarded(io.FileIO):
    """A file of which no large piece is read at once; `zipfile` reads an archive's list of records, and makes it objects."""

    def read(self, n: int = -1) -> bytes:
        if n > LIST_AT_MOST:
            raise zipfile.BadZipFile(f"a list of {n:,} bytes; weights have far less")
        return super().read(n)


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    with _Guarded(path) as file, zipfile.ZipFile(file) as archive:
        yield archive


def _zip(path: Path, archive: zipfile.ZipFile, classes: Sequence[str]) -> Any:
    names, size = archive.namelist(), path.stat().st_size
    pickles = [name for name in names if name.endswith("/data.pkl")]
    kinds = {info.compress_type for info in archive.infolist()}
    promised = sum(info.file_size for info in archive.infolist())
    arrays = bool(names) and all(name.endswith(".npy") for name in names)
    most = max(size * DEFLATED_AT_MOST, FREE) if arrays and zipfile.ZIP_DEFLATED in kinds else size
    if promised > most or not kinds <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED if arrays else zipfile.ZIP_STORED}:
        raise WeightFileError(
            f"{path} has {size:,} bytes, promises {promised:,} and is compressed in an unusual way; write it again with "
            "torch.save or numpy.savez."
        )
    if len(pickles) == 1:
        return read_torch_file(path, archive, pickles[0].removesuffix("data.pkl"), classes)
    if arrays and len(set(names)) == len(names) <= ARRAYS_AT_MOST:
        return {name.removesuffix(".npy"): _array(path, archive, name) for name in names}
    held = ", ".join(name[:50] for name in names[:5])
    raise WeightFileError(f"{path} is an archive of {held}: neither a file of torch.save nor an .npz.")


def _array(path: Path, archive: zipfile.ZipFile, name: str) -> Stored:
    try:
        with archive.open(name) as file:
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = read_header[np.lib.format.read_magic(file)](file)
            held = archive.getinfo(name).file_size - file.tell()
    except (*DAMAGED, TypeError, SyntaxError, MemoryError, tokenize.TokenError) as error:
        raise WeightFileError(f"{path}: {name[:100]} is no whole array ({shortened(str(error), 200)}).") from error
    whole = all(type(n) is int and n >= 0 for n in shape) and math.prod(shape) * dtype.itemsize == held
    if dtype.str.lstrip("<>|=") not in NUMBERS or not whole:
        raise WeightFileError(
            f"{path}: {name[:100]} promises {str(dtype)[:40]} {str(shape)[:60]} and holds {held:,} bytes; expected a whole "
            f"array of one of {', '.join(NUMBERS)}."
        )
    native = dtype.newbyteorder("=")

    def read() -> Tensor:
        try:
            with _archive(path) as again, again.open(name) as file:
                return torch.from_numpy(np.array(np.lib.format.read_array(file), native, order="C"))
        except (*DAMAGED, TypeError) as error:
            raise WeightFileError(
                f"{path}: {name[:100]} cannot be read ({shortened(str(error), 200)}); download or write it again."
            ) from error

    return Stored(tuple(shape), torch.from_numpy(np.empty(0, native)).dtype, read)
