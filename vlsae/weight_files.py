"""Files of tensors from anyone: what they hold, without running code and without more memory than they have bytes."""

from __future__ import annotations

import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlsae.pickles import Global, Inert, PickleError, parse

PLAIN = (r"collections\.OrderedDict", r"torch\._utils\._rebuild_\w+", r"torch\.\w+", r"torch\.storage\.\w+",
         r"torch\.serialization\._get_layout", r"numpy\.dtype", r"numpy\.(_core|core)\.multiarray\.scalar",
         r"_codecs\.encode", r"__builtin__\.set", r"builtins\.set",
         r"pathlib\.\w*Path")  # fmt: skip
STORAGES = {"FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
            "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
            "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
            "BoolStorage": torch.bool}  # fmt: skip
NUMBERS = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "b1")
JSON_AT_MOST = 64 * 2**20  # bytes
CHUNK = 2**24  # bytes read at a time
DEFLATED_AT_MOST = 40  # times its size in the file; weights shrink far less


class WeightFileError(ValueError):
    """A file that is damaged, of no known kind, or that asks for more than weights need."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, known by shape and type and not read yet."""

    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[], Tensor] = field(repr=False)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        WeightFileError: for what is no JSON object, or longer than 64 MB.
    """
    try:
        if path.stat().st_size > JSON_AT_MOST:
            raise WeightFileError(f"{path} has {path.stat().st_size:,} bytes; a configuration is far smaller.")
        return json_object(path.read_bytes(), path)
    except OSError as error:
        raise WeightFileError(f"{path} cannot be read: {error}.") from error


def json_object(text: bytes, path: Path) -> dict[str, Any]:
    """The same for text that has been read."""
    try:
        value = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise WeightFileError(f"{path} is no whole JSON file ({error}); download or write it again.") from error
    if not isinstance(value, dict):
        raise WeightFileError(f"{path} holds a JSON {type(value).__name__}; expected an object with names.")
    return value


def read_content(path: Path, classes: Sequence[str] = ()) -> Any:
    """What a weight file holds, with every tensor as a `Stored`.

    Args:
        path: a .safetensors file, what `torch.save` wrote, or an .npz; a first line of JSON is passed over.
        classes: regular expressions of further names that a pickle may mention. They are not imported: an object is an
            `Inert` with the attributes that were stored.

    Returns:
        For .safetensors and .npz a dictionary of `Stored`; else whatever was saved.

    Raises:
        WeightFileError: for a file that is missing, damaged or of another kind, that mentions other names, or whose header
            promises more than the file holds.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as error:
        raise WeightFileError(f"{path} cannot be read: {error}.") from error
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if not zipfile.is_zipfile(path):
        raise WeightFileError(f"{path} is no whole weight file: {_what(start)}.")
    try:
        with zipfile.ZipFile(path) as archive:
            return _zip(path, archive, classes)
    except PickleError as error:
        raise WeightFileError(f"{path} is no whole weight file: its pickle cannot be followed, {error}.") from error
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        OSError,
        zlib.error,
        struct.error,
        RuntimeError,
        EOFError,
    ) as error:
        raise WeightFileError(f"{path} is no whole weight file ({error}); download or write it again.") from error


def _what(start: bytes) -> str:
    if not start:
        return "it is empty"
    if start[:1] == b"\x80":
        return (
            "it is a bare pickle, as torch wrote before 1.6; if you trust its source, open it with "
            "torch.load(file, weights_only=False) and save its state dict again with torch.save"
        )
    if start[:2] == b"\x1f\x8b":
        return "it is compressed with gzip; unpack it first"
    if start[:1] == b"<":
        return "it is a web page, as a failed download leaves it"
    if start.startswith(b"version "):
        return "it is a git-lfs pointer; fetch the file itself with `git lfs pull`"
    return f"it begins with {start!r} and is neither safetensors, a file of torch.save, nor .npz, or it is cut off"


def _safetensors(path: Path) -> dict[str, Stored]:
    kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
             "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}  # fmt: skip

    def reader(name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name)

        return read

    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no dictionary)
            return {
                name: Stored(tuple(part.get_shape()), kinds.get(part.get_dtype()), reader(name))
                for name, part in slices.items()
            }
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightFileError(f"{path} is no whole safetensors file ({error}); download or write it again.") from error


def _zip(path: Path, archive: zipfile.ZipFile, classes: Sequence[str]) -> Any:
    size = path.stat().st_size
    promised = sum(info.file_size for info in archive.infolist())
    deflated = any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist())
    if promised > size * (DEFLATED_AT_MOST if deflated else 1):
        raise WeightFileError(f"{path} has {size:,} bytes and promises {promised:,}; it is not what it says.")
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) == 1:
        return _torch_file(path, archive, pickles[0].removesuffix("data.pkl"), classes)
    if archive.namelist() and all(name.endswith(".npy") for name in archive.namelist()):
        return {name.removesuffix(".npy"): _array(path, archive, name) for name in archive.namelist()}
    raise WeightFileError(
        f"{path} is an archive of {archive.namelist()[:5]}: neither a file of torch.save nor an .npz."
    )


def _array(path: Path, archive: zipfile.ZipFile, name: str) -> Stored:
    try:
        with archive.open(name) as file:
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = read_header[np.lib.format.read_magic(file)](file)
            held = archive.getinfo(name).file_size - file.tell()
    except (ValueError, KeyError, SyntaxError, RecursionError, MemoryError) as error:
        raise WeightFileError(f"{path}: {name} is no whole array ({error}).") from error
    if dtype.str.lstrip("<>|=") not in NUMBERS or math.prod(shape) * dtype.itemsize != held:
        raise WeightFileError(
            f"{path}: {name} promises {str(dtype)[:40]} {str(shape)[:60]} and holds {held:,} bytes; expected a whole array of "
            f"one of {', '.join(NUMBERS)}."
        )

    def read() -> Tensor:
        try:
            with zipfile.ZipFile(path) as again, again.open(name) as file:
                return torch.from_numpy(np.ascontiguousarray(np.lib.format.read_array(file, allow_pickle=False)))
        except (ValueError, TypeError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise WeightFileError(f"{path}: {name} cannot be read ({error}); download or write it again.") from error

    return Stored(tuple(shape), torch.from_numpy(np.empty(0, dtype.newbyteorder("="))).dtype, read)


@dataclass(frozen=True)
class _Storage:
    """Numbers in a record of the archive."""

    dtype: torch.dtype
    record: str
    n: int


def _torch_file(path: Path, archive: zipfile.ZipFile, root: str, classes: Sequence[str]) -> Any:
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise WeightFileError(f"{path} was written on a big-endian machine; save it again on a usual one.")
    allowed = re.compile("|".join(f"(?:{name})" for name in (*PLAIN, *classes)))

    def stored(name: Any) -> _Storage:
        if not isinstance(name, tuple) or len(name) != 5 or name[0] != "storage" or not isinstance(name[1], Global):
            raise PickleError("it names a storage in an unusual way")
        kind = name[1].name.rpartition(".")[2]
        if kind not in STORAGES:
            raise PickleError(f"it has numbers of the kind {kind}")
        record = f"{root}data/{name[2]}"
        info = archive.getinfo(record)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > path.stat().st_size:
            raise PickleError(f"its record {record} is compressed or longer than the file")
        return _Storage(STORAGES[kind], record, info.file_size // STORAGES[kind].itemsize)

    def build(call: Inert) -> Any:
        if not allowed.fullmatch(call.name):
            raise WeightFileError(
                f"{path} holds a Python object, {call.name[:100]}, and opening it would run code of whoever wrote the file; "
                "only tensors, plain values and objects of known classes are read. If you trust its source, convert it once: "
                "found = torch.load(file, weights_only=False); torch.save({'state_dict': found['state_dict']}, 'weights.pt')"
                " - of a pickled module, torch.save({'state_dict': found.state_dict()}, 'weights.pt')."
            )
        return _build(path, call)

    return parse(archive.read(f"{root}data.pkl"), stored, build)


def _build(path: Path, call: Inert) -> Any:
    function, args = call.name.rpartition(".")[2], call.args
    if call.name == "collections.OrderedDict":
        return dict(args[0]) if args and isinstance(args[0], dict) else {}
    if function in ("_rebuild_tensor", "_rebuild_tensor_v2"):
        return _tensor(path, *args[:4])
    if function in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
        return args[0]
    if call.name == "_codecs.encode":
        return args[0].encode("latin1")  # how protocol 2 writes bytes
    if call.name in ("torch.Size", "__builtin__.set", "builtins.set"):
        return list(args[0]) if args and isinstance(args[0], (list, tuple)) else []
    if call.name == "torch.device" or call.name.startswith("pathlib."):
        return "/".join(part for part in args if isinstance(part, str))
    if call.name.endswith("multiarray.scalar"):
        return _scalar(*args)
    if call.name.startswith("torch._utils."):
        raise PickleError(f"it has a tensor of an unusual kind, {function}")
    return call


def _scalar(dtype: Any, data: bytes = b"") -> Any:
    kind = dtype.args[0] if isinstance(dtype, Inert) and dtype.name == "numpy.dtype" and dtype.args else ""
    if kind not in NUMBERS or not isinstance(data, bytes) or len(data) != int(kind[1]):
        raise PickleError("it has a number of an unusual kind")
    return np.frombuffer(data, dtype=f"<{kind}")[0].item()


def _tensor(path: Path, storage: Any, offset: Any, shape: Any, stride: Any) -> Stored:
    shape, stride = tuple(shape)[:9], tuple(stride)[:9]
    whole = [offset, *shape, *stride]
    possible = len(shape) == len(stride) <= 8 and all(type(n) is int and 0 <= n < 2**48 for n in whole)
    if not isinstance(storage, _Storage) or not possible:
        raise PickleError("a tensor has an impossible shape")
    n = math.prod(shape)
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride)) if n else offset - 1
    if last >= storage.n or n > max(storage.n, 2**20):
        raise PickleError(f"a tensor of shape {shape} lies beyond the {storage.n:,} numbers of its record")

    def read() -> Tensor:
        buffer = _record(path, storage.record)
        flat = torch.empty(0, dtype=storage.dtype)
        if storage.n:
            flat = torch.frombuffer(buffer, dtype=storage.dtype, count=storage.n)
        return flat.as_strided(shape, stride, offset)

    return Stored(shape, storage.dtype, read)


def _record(path: Path, name: str) -> bytearray:
    """The bytes of an archive's record; their checksum has been compared."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            buffer = bytearray(archive.getinfo(name).file_size)
            view, at = memoryview(buffer), 0
            while at < len(buffer):
                n = file.readinto(view[at : at + CHUNK])
                if not n:
                    raise EOFError(f"{name} ends early")
                at += n
            return buffer
    except (OSError, KeyError, EOFError, zipfile.BadZipFile, RuntimeError) as error:
        raise WeightFileError(f"{path} is damaged ({error}); download or write it again.") from error
