"""Files that lie, attack or are merely unusual, made for the tests of whatever opens strangers' files."""

import io
import json
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from typing import ClassVar

import numpy as np
import torch

BASE = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


def saved(path, held, protocol=2):
    torch.save(held, path, pickle_protocol=protocol)
    return path


class Called:
    """Pickles as a call."""

    def __init__(self, function, *args, state=None):
        self.parts = (function, args) if state is None else (function, args, state)

    def __reduce_ex__(self, protocol):
        return self.parts


class SetState:
    def __setstate__(self, state):
        os.mkdir(state)

    def __reduce__(self):
        return SetState, (), self.at


def attacks(mark):
    """Objects that make a folder when they are unpickled, or would with more effort."""
    code = f"__import__('os').mkdir({str(mark)!r})"
    legacy = io.BytesIO()
    torch.save(Called(os.mkdir, str(mark)), legacy, _use_new_zipfile_serialization=False)
    state = SetState()
    state.at = str(mark)
    return {
        "mkdir": Called(os.mkdir, str(mark)), "system": Called(os.system, f"mkdir {mark}"), "exec": Called(exec, code),
        "eval": Called(eval, code), "setstate": state, "nested": {"a": [(1, Called(os.mkdir, str(mark)))]},
        "inside": torch.nn.Sequential(torch.nn.Linear(1, 1)), "getattr": Called(getattr, os, "mkdir"),
        "load": Called(torch.storage._load_from_bytes, legacy.getvalue()), "array": np.ones(3),
        "torch.load": Called(torch.load, str(mark)), "bytearray": Called(bytearray, 10**12),
        "module": Called(__import__, "antigravity"),
    }  # fmt: skip


def rewritten(path, change, **records):
    """The archive with its pickle changed, and other records."""
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(held)).split("/")[0]
    held[f"{root}/data.pkl"] = change(held[f"{root}/data.pkl"])
    held |= {f"{root}/{name}": data for name, data in records.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in held.items():
            archive.writestr(name, data)
    return path


class Name:
    """Pickles as the name of a class or function."""

    def __init__(self, name):
        self.name = name


class Pickler(pickle._Pickler):
    """Writes names without looking them up, and persistent ids as torch does."""

    def persistent_id(self, part):
        return part[1:] if isinstance(part, tuple) and part[:1] == ("persistent",) else None

    def save_name(self, part):
        module, _, name = part.name.rpartition(".")
        self.write(f"c{module}\n{name}\n".encode())

    dispatch: ClassVar = {**pickle._Pickler.dispatch, Name: save_name}


def tensor(shape, stride, offset=0, n=30, storage="FloatStorage", record="0", call="_rebuild_tensor_v2", more=()):
    """A pickle of one tensor, however impossible."""
    out = io.BytesIO(b"\x80\x02")
    out.seek(2)
    pickler = Pickler(out, 2)
    pickler.save(Name(f"torch._utils.{call}"))
    storage = ("persistent", "storage", Name(f"torch.{storage}"), record, "cpu", n)
    pickler.save((storage, offset, shape, stride, False, {}, *more))
    out.write(b"R.")
    return out.getvalue()


def npz(path, *bodies, compression=zipfile.ZIP_DEFLATED):
    """An .npz of raw records."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for i, body in enumerate(bodies):
            archive.writestr(f"{i}.npy", body)
    return path


def npy(text, data=b"", version=b"\x01\x00"):
    """An array's record with any header."""
    return (
        b"\x93NUMPY" + version + struct.pack("<H" if version == b"\x01\x00" else "<I", len(text)) + text.encode() + data
    )


def header(descr="<f4", shape="(2, 3)", order=False):
    return f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def safe(path, header, data=bytes(24)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def bounded(run, seconds=10.0, megabytes=None):
    """Runs quickly (each takes a second at most; attacks that work take minutes) and within memory of Python and numpy."""
    if megabytes is not None:
        tracemalloc.start()
    start = time.perf_counter()
    try:
        return run()
    finally:
        assert time.perf_counter() - start < seconds
        if megabytes is not None:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < megabytes * 2**20


def rezipped(path, compression=zipfile.ZIP_DEFLATED):
    """The same archive, compressed."""
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in held.items():
            archive.writestr(name, data)
    return path
