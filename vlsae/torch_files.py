"""The archive that `torch.save` writes, read as data."""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from vlsae.pickles import Global, Inert, PickleError, parse
from vlsae.stored import Stored, WeightFileError, memory

CALLS = (r"collections\.OrderedDict", r"torch\._utils\._rebuild_\w+", r"torch\.Size", r"torch\.device",
         r"torch\.serialization\._get_layout", r"numpy\.dtype", r"numpy\.(_core|core)\.multiarray\.scalar",
         r"_codecs\.encode", r"(__builtin__|builtins)\.set", r"pathlib\.(_local\.)?\w*Path")  # fmt: skip
STORAGES = {"FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
            "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
            "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
            "BoolStorage": torch.bool}  # fmt: skip
NUMBERS = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "b1")
EXPANDED_AT_MOST = 2**20  # numbers of a tensor that repeats those of its storage
TEXT_AT_MOST = 64  # characters that are copied by a call; a pickle can have the same call a million times


def read_torch_file(path: Path, archive: zipfile.ZipFile, root: str, classes: Sequence[str]) -> Any:
    """What was saved, with every tensor as a `Stored`.

    Args:
        path: for messages, and for reading tensors later.
        archive: the file, open.
        root: the folder in the archive that holds `data.pkl`.
        classes: regular expressions of names that its pickle may call beyond those of torch; they become `Inert`.

    Raises:
        PickleError: for a pickle that is damaged or unusual.
        WeightFileError: for one that calls anything else.
    """
    records = _Records(path, {info.filename: info for info in archive.infolist()})
    if f"{root}byteorder" in records.infos and archive.read(f"{root}byteorder") != b"little":
        raise WeightFileError(f"{path} was written on a big-endian machine; save it again on a usual one.")
    allowed = re.compile("|".join(f"(?:{name})" for name in (*CALLS, *classes)))

    def build(call: Inert) -> Any:
        if not allowed.fullmatch(call.name):
            raise WeightFileError(
                f"{path} holds a Python object, {call.name[:100]}, and opening it would run code of whoever wrote the file; "
                "only tensors, plain values and objects of known classes are read. If you trust its source, convert it once: "
                "found = torch.load(file, weights_only=False); torch.save({'state_dict': found['state_dict']}, 'weights.pt')"
                " - of a pickled module, torch.save({'state_dict': found.state_dict()}, 'weights.pt')."
            )
        return _build(records, call)

    return parse(archive.read(f"{root}data.pkl"), lambda name: _storage(records, root, name), build)


class _Records:
    """The records of an archive; each is in memory once, while any tensor of it is."""

    def __init__(self, path: Path, infos: dict[str, zipfile.ZipInfo]):
        self.path, self.infos = path, infos
        self.held: WeakValueDictionary[str, np.ndarray] = WeakValueDictionary()

    def read(self, name: str) -> np.ndarray:
        """The bytes of a record, after a look at their checksum."""
        buffer = self.held.get(name)
        if buffer is None:
            self.held[name] = buffer = self._read(self.infos[name])
        return buffer

    def _read(self, info: zipfile.ZipInfo) -> np.ndarray:
        try:
            with open(self.path, "rb") as file:
                file.seek(info.header_offset)
                file.seek(sum(struct.unpack("<26x2H", file.read(30))), 1)  # the record's name and extra field
                buffer = memory(info.file_size)
                n = file.readinto(buffer)
        except (OSError, struct.error) as error:
            raise WeightFileError(f"{self.path} is damaged ({error}); download or write it again.") from error
        if n != len(buffer) or zlib.crc32(buffer) != info.CRC:
            raise WeightFileError(
                f"{self.path} is damaged: the checksum of {info.filename} is wrong; download or write it again."
            )
        return buffer


@dataclass(frozen=True)
class _Storage:
    """Numbers in a record of the archive."""

    dtype: torch.dtype
    record: str
    n: int


def _storage(records: _Records, root: str, name: Any) -> _Storage:
    known = isinstance(name, tuple) and len(name) == 5 and name[0] == "storage" and isinstance(name[1], Global)
    if not known or not isinstance(name[2], str) or type(name[4]) is not int:
        raise PickleError("it names a storage in an unusual way")
    kind = name[1].name.rpartition(".")[2]
    if kind not in STORAGES:
        raise PickleError(f"it has numbers of the kind {kind}, which no dictionary has")
    info = records.infos.get(f"{root}data/{name[2][:100]}")
    n = info.file_size // STORAGES[kind].itemsize if info else -1
    if n != name[4]:
        raise PickleError(
            f"it promises {name[4]:,} numbers in a record that {f'holds {n:,}' if info else 'is missing'}"
        )
    return _Storage(STORAGES[kind], info.filename, n)


def _build(records: _Records, call: Inert) -> Any:
    """What a call of torch's own is worth. Nothing here copies an argument: the same call can come a million times."""
    function, args = call.name.rpartition(".")[2], call.args
    if call.name == "collections.OrderedDict":
        if args:
            raise PickleError("it has an OrderedDict in an unusual way")
        return {}
    if function in ("_rebuild_tensor", "_rebuild_tensor_v2"):
        if len(args) > 6 and args[6]:
            raise PickleError("it has a conjugate or negative view")
        return _tensor(records, *args[:4])
    if function in ("_rebuild_parameter", "_rebuild_parameter_with_state", "Size", "set"):
        return args[0] if args else []
    if call.name.startswith("torch._utils."):
        raise PickleError(f"it has a tensor of an unusual kind, {function}")
    if call.name.endswith("multiarray.scalar"):
        return _scalar(*args)
    if call.name == "_codecs.encode" and len(args[0]) <= TEXT_AT_MOST:
        return args[0].encode("latin1")  # how protocol 2 writes bytes
    return _text(call)


def _text(call: Inert) -> Any:
    """Devices and paths as text, where they are short."""
    parts = [str(part) for part in call.args[:TEXT_AT_MOST] if isinstance(part, (str, int)) and len(str(part)) < 256]
    if call.name == "torch.device":
        return ":".join(parts)
    return str(PurePosixPath(*parts)) if call.name.startswith("pathlib.") else call


def _scalar(dtype: Any, data: Any = b"") -> Any:
    kind = dtype.args[0] if isinstance(dtype, Inert) and dtype.name == "numpy.dtype" and dtype.args else ""
    if kind not in NUMBERS or not isinstance(data, bytes) or len(data) != int(kind[1]):
        raise PickleError("it has a number of an unusual kind")
    return np.frombuffer(data, dtype=f"<{kind}")[0].item()


def _tensor(records: _Records, storage: Any, offset: Any, shape: Any, stride: Any) -> Stored:
    tuples = isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride) <= 8
    if not isinstance(storage, _Storage) or not tuples:
        raise PickleError("it has a tensor without a shape")
    if not all(type(n) is int and 0 <= n < 2**40 for n in (offset, *shape, *stride)):
        raise PickleError("it has a tensor of an impossible shape")
    n = math.prod(shape)
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride)) if n else offset - 1
    if last >= storage.n or math.prod(size or 1 for size in shape) >= 2**48:
        raise PickleError(f"it has a tensor of shape {shape}, beyond the {storage.n:,} numbers of its record")
    if n > max(storage.n, EXPANDED_AT_MOST):
        raise PickleError(f"it has a tensor of shape {shape} that repeats {storage.n:,} numbers; save it contiguous")

    def read() -> Tensor:
        flat = torch.empty(0, dtype=storage.dtype)
        if storage.n:
            held = torch.from_numpy(records.read(storage.record))
            flat = held[: storage.n * storage.dtype.itemsize].view(storage.dtype)
        return flat.as_strided(shape, stride, offset)

    return Stored(shape, storage.dtype, read)
