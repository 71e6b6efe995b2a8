"""Ways in which a checkpoint can be damaged, confused or hostile. Each takes a folder's files as bytes and changes them."""

import copy
import io
import json
import math
import os
import struct
import zipfile

import numpy as np
import torch
from safetensors.torch import load, save

from tests.strangers import Called

DEEP = 0
for _ in range(45):
    DEEP = [DEEP]
VALUES = (
    None, True, False, -1, 0, 1, 2, 3, 7, 2**31, 2**63, 10**30, -(10**30), 0.5, 1e308, -1e308, math.nan, math.inf,
    "", "relu", "none", "topk", "x" * 5000, "\x1b[2J\n", "../../etc", [], [0], [1, 2], list(range(1000)), DEEP, {}, {"a": {}},
    {"k": -1}, [None], [[]],
)  # fmt: skip


class Files(dict):
    """The files of a checkpoint by name, and where its weights are."""

    @property
    def weights(self):
        return next(name for name in sorted(self) if not name.endswith(".json"))

    @property
    def configs(self):
        return sorted(name for name in self if name.endswith(".json"))


# whole files


def truncated(files, random, others, mark):
    name = random.choice(sorted(files))
    files[name] = files[name][: random.randrange(len(files[name]))]


def flipped(files, random, others, mark):
    name = random.choice(sorted(files))
    data = bytearray(files[name])
    for _ in range(random.choice((1, 1, 1, 8))):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    files[name] = bytes(data)


def spliced(files, random, others, mark):
    """A stretch of a file is lost, comes twice, or is another file's."""
    name = random.choice(sorted(files))
    data, other = (
        files[name],
        files[name] if random.random() < 0.5 else random.choice(list(random.choice(others)[0].values())),
    )
    (a, b), (c, d) = (sorted(random.randrange(len(held) + 1) for _ in range(2)) for held in (data, other))
    files[name] = data[:a] + other[c:d] + data[b:]


def confused(files, random, others, mark):
    """The configuration of one checkpoint beside the weights of another, perhaps under its name."""
    other = random.choice(others)[0]
    for name in files.configs:
        del files[name]
    files |= {name: other[name] for name in other.configs}
    if random.random() < 0.3:
        files[other.weights] = files.pop(files.weights)


def replaced(files, random, others, mark):
    """Another kind of file altogether."""
    name = random.choice(sorted(files))
    files[name] = random.choice((
        b"", b"\0" * 100, b"<html>", b"{}", b"[]", b"null", b"{" * 9999, b'{"a":' * 9999, b"\x80\x02}.", b"PK\5\6" + bytes(18),
        b"version https://git-lfs.github.com/spec/v1\n", b'{"schema": 5, "cfg": {}}\n', b'{"d_vit": 8}\n' + b"x" * 50,
    ))  # fmt: skip


# what is in them


def places(value, path=()):
    """Paths to all values of nested dictionaries and lists."""
    yield path
    if isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, (*path, key))


def changed(value, random, change):
    """One place of a nested value changed; deep places are as likely as shallow ones."""
    paths = list(places(value))[1:]
    if not paths:
        return change(value)
    *way, last = random.choice(paths)
    inner = value
    for key in way:
        inner = inner[key]
    inner[last] = change(inner[last])
    return value


def hostile(random):
    def change(old):
        if isinstance(old, bool) and random.random() < 0.3:
            return not old
        if isinstance(old, int) and random.random() < 0.3:
            return old + random.choice((-1, 1, 1000))
        return copy.deepcopy(random.choice(VALUES))

    return change


def configured(files, random, others, mark):
    """A value of a configuration, or of the first line of a file, is another."""
    names = [*files.configs, *([files.weights] if files[files.weights][:1] == b"{" else [])]
    if not names:
        return
    name = random.choice(names)
    line, end, rest = files[name].partition(b"\n") if name == files.weights else (files[name], b"", b"")
    held = json.loads(line)
    for _ in range(random.choice((1, 1, 2, 4))):
        kind = random.random()
        if kind < 0.1 and isinstance(held, dict) and held:
            del held[random.choice(list(held))]
        elif kind < 0.2 and isinstance(held, dict):
            held[random.choice(("k", "d_sae", "\x1b" * 300, "x" * 3000, "W_dec", ""))] = copy.deepcopy(
                random.choice(VALUES)
            )
        else:
            held = changed(held, random, hostile(random))
    files[name] = json.dumps(held).encode() + end + rest


def tensor_changed(random):
    """Another shape, kind or values."""

    def change(t):
        if not isinstance(t, torch.Tensor):
            return hostile(random)(t)
        if t.is_complex():
            return t.real
        wild = random.choice((math.nan, math.inf, -math.inf, 1e38, -1e38, 0.0, -1.0))
        flat = t.flatten()
        where = torch.arange(len(flat)) == random.randrange(max(1, len(flat)))
        filled = torch.where(where, torch.tensor(wild, dtype=torch.float64), flat.double()).reshape(t.shape).to(t.dtype)
        return random.choice((
            lambda: t.T if t.ndim == 2 else t[None], lambda: t[..., None], lambda: flat, lambda: t[:0],
            lambda: t[..., :0], lambda: t[1:],
            lambda: t[..., :-1] if t.ndim else t, lambda: torch.cat([t[None], t[None]]),
            lambda: t.to(torch.complex64), lambda: t.int(),
            lambda: t > 0, lambda: t.double(), lambda: t.half(), lambda: t.double() * 1e300,
            lambda: torch.tensor(wild), lambda: torch.empty(0),
            lambda: filled, lambda: filled, lambda: t.expand(2, *t.shape), lambda: t * 0,
            lambda: ~t if t.dtype == torch.bool else -t, lambda: t.byte(),
        ))() if t.ndim else random.choice((t[None], torch.tensor(wild), t.int(), t.expand(3)))  # fmt: skip

    return change


def stored(files, random, others, mark):
    """A tensor or another value in the weight file is changed, lost or added, or calls for a folder to be made."""
    name = files.weights
    head, held, write = opened(files[name])
    if held is None:
        return
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        kind, flat = random.random(), isinstance(held, dict) and held
        if kind < 0.15 and flat:
            del held[random.choice(list(held))]
        elif kind < 0.25 and flat:
            held[random.choice(("W_dec", "extra", "threshold", "x" * 3000, "\x1b[2J", "b_dec"))] = torch.ones(
                random.choice(((), (8,), (3, 2)))
            )
        elif kind < 0.35 and flat and len(held) > 1:
            a, b = random.sample(list(held), 2)
            held[a], held[b] = held[b], held[a]
        elif kind < 0.45 and write is torch_bytes:
            held = changed(held, random, lambda _: Called(os.mkdir, mark))
        elif held or write is torch_bytes:
            held = changed(held, random, tensor_changed(random))
    files[name] = head + write(held)


def rewritten(files, random, others, mark):
    """The pickle of an archive or the header of an array or of safetensors is changed, and all lengths and sums are right."""
    name = files.weights
    data = files[name]
    if data[8:9] == b"{":
        n = struct.unpack("<Q", data[:8])[0]
        header = json.dumps(changed(json.loads(data[8 : 8 + n]), random, hostile(random))).encode()
        files[name] = struct.pack("<Q", len(header)) + header + data[8 + n :]
        return
    head, body = (data[: data.index(b"\n") + 1], data[data.index(b"\n") + 1 :]) if data[:1] == b"{" else (b"", data)
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        records = {record: archive.read(record) for record in archive.namelist()}
    record = random.choice([record for record in records if record.endswith(("data.pkl", ".npy"))])
    text = bytearray(records[record])
    for _ in range(random.choice((1, 1, 2, 5))):
        at, kind = random.randrange(min(len(text), 2**12)), random.random()
        if kind < 0.5:
            text[at] = random.choice((random.randrange(256), *b"().QRbtuseahjqK}]0"))
        elif kind < 0.7:
            del text[at : at + random.randrange(1, 20)]
        else:
            text[at:at] = text[(start := random.randrange(len(text))) : start + random.randrange(1, 60)]
    records[record] = bytes(text)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for record, held in records.items():
            archive.writestr(record, held)
    files[name] = head + out.getvalue()


def torch_bytes(held):
    out = io.BytesIO()
    torch.save(held, out)
    return out.getvalue()


def safetensors_bytes(held):
    return save({name: value.contiguous().clone() for name, value in held.items() if isinstance(value, torch.Tensor)})


def numpy_bytes(held):
    out = io.BytesIO()
    np.savez(
        out,
        **{name.replace("/", ""): np.asarray(value) for name, value in held.items() if isinstance(value, torch.Tensor)},
    )
    return out.getvalue()


def opened(data):
    """What precedes the tensors, what the file holds, and how it is written again; None for a pickled object."""
    head, body = (data[: data.index(b"\n") + 1], data[data.index(b"\n") + 1 :]) if data[:1] == b"{" else (b"", data)
    if body[8:9] == b"{":
        return head, dict(load(body)), safetensors_bytes
    names = zipfile.ZipFile(io.BytesIO(body)).namelist()
    if all(name.endswith(".npy") for name in names):
        return head, {name: torch.from_numpy(array) for name, array in np.load(io.BytesIO(body)).items()}, numpy_bytes
    try:
        return head, torch.load(io.BytesIO(body), weights_only=True), torch_bytes
    except Exception:  # a module of a library that is not installed
        return head, None, None


MUTATIONS = (truncated, flipped, spliced, confused, replaced, *3 * (configured,), *4 * (stored,), *3 * (rewritten,))
