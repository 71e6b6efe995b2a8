"""Other weight files and configurations: whatever numpy, safetensors and JSON write is read back, what lies is refused."""

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.strangers import BASE, bounded, header, npy, npz, rewritten, rezipped, safe, saved, tensor
from vlsae.stored import WeightFileError, shortened
from vlsae.weight_files import read_content, read_json


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_numpy_archives(tmp_path, write):
    base = BASE.numpy()
    arrays = {
        "c": base, "fortran": np.asfortranarray(base), "view": base[::2], "scalar": np.float32(2.5), "empty": np.empty((0, 3)),
        "big endian": base.astype(">f4"), "big whole": np.arange(5, dtype=">i8"), "zeros": np.zeros((500, 500)),
        **{kind: (base * 9).astype(kind) for kind in ("f8", "f2", "i8", "i4", "i2", "i1", "u1", "?")},
    }  # fmt: skip
    write(tmp_path / "a.npz", **arrays)
    found = {name: part.read() for name, part in read_content(tmp_path / "a.npz").items()}
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].shape == np.shape(array) and np.array_equal(found[name].numpy(), array), name


def test_safetensors(tmp_path):
    kinds = (
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
    )
    held = {str(kind): (BASE * 9).to(kind) for kind in kinds}
    held |= {"plain": BASE, "truth": BASE > 0, "scalar": torch.tensor(2.5), "empty": torch.empty(3, 0)}
    for name in ("a.safetensors", "blob"):
        save_file(held, tmp_path / name)
        found = {name: part.read() for name, part in read_content(tmp_path / name).items()}
        assert set(found) == set(held) and all(torch.equal(found[name], held[name]) for name in held)


@pytest.mark.parametrize("body", [
    b"", b"\x93NUMPY", npy(""), npy("{}"), npy("{"), npy("(" * 5000), npy("{'descr'"), npy("L" * 20_000),
    npy(header(), b"1234"), npy(header()),
    npy(header(shape="(10**12,)")), npy(header(shape=f"({2**62}, 4)")), npy(header(shape="(-2, -3)"), b"\0" * 24),
    npy(header("|O", "(1,)"), b"\x80\x02N."),
    npy(header("<U4"), b"\0" * 96), npy(header("<M8[s]", "(1,)"), b"\0" * 8), npy(header("<c8", "(1,)"), b"\0" * 8),
    npy(header(shape="(True,)"), b"\0" * 4),
    npy(header("<f4, <f4", "(1,)"), b"\0" * 8), npy(header("nonsense")), npy(header(shape="5")),
    npy("__import__('os').mkdir('x')\n"),
    npy(header(), b"\0" * 24, b"\x03\x00"), npy(header(), b"\0" * 24, b"\x09\x00"), npy("'\n  x\n y", b""),
    npy("{'a': " + "'" * 3, b""),
])  # fmt: skip
def test_arrays_that_lie_are_refused(tmp_path, body):
    with pytest.raises(WeightFileError, match="0.npy (is no whole array|promises)") as refusal:
        read_content(npz(tmp_path / "a.npz", body))
    assert len(str(refusal.value)) < 1000


def test_what_unpacks_to_more_than_weights_is_refused(tmp_path):
    """Nothing is unpacked: 100 MB of zeros are 100 kB."""
    path = npz(tmp_path / "a.npz", npy(header(shape="(5000, 5000)"), bytes(10**8)))
    assert path.stat().st_size < 2**18
    with pytest.raises(WeightFileError, match="promises 100,000,"):
        bounded(lambda: read_content(path), megabytes=1)
    for make in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with pytest.raises(WeightFileError, match="compressed in an unusual way"):
            read_content(rezipped(saved(tmp_path / "b.pt", {"w": BASE}), make))
    for make in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with pytest.raises(WeightFileError, match="compressed in an unusual way"):
            read_content(npz(tmp_path / "c.npz", npy(header(), b"\0" * 24), compression=make))


def test_records_that_overlap_are_refused(tmp_path):
    """A thousand names for the same megabyte."""
    path = npz(tmp_path / "a.npz", bytes(2**20), compression=zipfile.ZIP_STORED)
    data = path.read_bytes()
    at, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entries = b"".join(
        data[at : at + 28] + struct.pack("<H", 8) + data[at + 30 : at + 46] + b"%04d.npy" % i for i in range(1000)
    )
    tail = data[end : end + 8] + struct.pack("<2H2LH", 1000, 1000, len(entries), at, 0)
    path.write_bytes(data[:at] + entries + tail)
    assert len(zipfile.ZipFile(path).namelist()) == 1000
    with pytest.raises(WeightFileError, match="promises 1,048,576,000"):
        read_content(path)


def test_an_archive_of_very_many_records_is_not_listed(tmp_path):
    """`zipfile` makes half a kilobyte of objects of each entry of 46 bytes."""
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, 20 * 2**20, 0, 0)
    path = tmp_path / "a.pt"
    path.write_bytes((b"PK\x01\x02" + bytes(42)) * (20 * 2**20 // 46 + 1) + end)
    with pytest.raises(WeightFileError, match="weights have far less"):
        bounded(lambda: read_content(path), megabytes=1)
    path = npz(tmp_path / "b.npz", *[b""] * 10_001, compression=zipfile.ZIP_STORED)
    with pytest.raises(WeightFileError, match="neither a file of torch.save nor an .npz"):
        read_content(path)


def test_a_file_that_vanishes_or_shrinks_before_a_tensor_is_read(tmp_path):
    for name, write in (
        ("a.pt", torch.save),
        ("a.safetensors", save_file),
        ("a.npz", lambda held, at: np.savez(at, **held)),
    ):
        path = tmp_path / name
        write({"w": BASE}, path)
        content = read_content(path)
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(WeightFileError, match="damaged|cannot be read"):
            content["w"].read()
        path.unlink()
        with pytest.raises(WeightFileError, match="damaged|cannot be read"):
            content["w"].read()


@pytest.mark.parametrize("header", [
    b"{", b"{}x", b"[]", b"null", b"{" * 5000, b'{"a":' * 100_000, b'{"a": 1}', b"\xff" * 30, {"w": {}},
    {"w": {"dtype": "F32", "shape": [2, 3]}},
    {"w": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 24]}},
    {"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 24]}},
    {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 2**60]}},
    {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [24, 0]}},
    {"w": {"dtype": "F32", "shape": [-2, -3], "data_offsets": [0, 24]}},
    {"w": {"dtype": "X", "shape": [2, 3], "data_offsets": [0, 24]}},
    {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}},
    {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [8, 24]}},
    {f"w{i}": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} for i in range(2)},
    {"w": {"dtype": "F32", "shape": [2.0, 3], "data_offsets": [0, 24]}}, {"__metadata__": {"a": {"b": 1}}},
])  # fmt: skip
def test_safetensors_headers_that_lie_are_refused(tmp_path, header):
    with pytest.raises(WeightFileError, match="is no whole safetensors file") as refusal:
        read_content(safe(tmp_path / "a.safetensors", header))
    assert len(str(refusal.value)) < 1000


def test_lengths_of_safetensors_headers_that_lie(tmp_path):
    path = tmp_path / "a.safetensors"
    for n in (2**24 + 1, 2**62, 2**64 - 1):
        path.write_bytes(struct.pack("<Q", n) + b"{}" + bytes(100))
        with pytest.raises(WeightFileError, match="header is too long"):
            read_content(path)
    path.write_bytes(struct.pack("<Q", 1000) + b"{}" + bytes(100))
    with pytest.raises(WeightFileError, match="is no whole safetensors file"):
        read_content(path)


def test_kinds_of_numbers_that_are_not_known(tmp_path):
    found = read_content(
        safe(tmp_path / "a.safetensors", {"w": {"dtype": "C64", "shape": [3], "data_offsets": [0, 24]}})
    )
    assert found["w"].dtype is None and found["w"].shape == (3,)
    with pytest.raises(WeightFileError, match="numbers are of the kind C64"):
        found["w"].read()


def test_a_name_that_comes_twice_reads_within_the_file(tmp_path):
    """safetensors and JSON may each believe another one of the two."""
    first, second = (
        {"dtype": "F32", "shape": [2, 3], "data_offsets": offsets} for offsets in ([0, 24], [10**9, 10**15])
    )
    path = safe(tmp_path / "a.safetensors", f'{{"w": {json.dumps(first)}, "w": {json.dumps(second)}}}'.encode())
    with pytest.raises(WeightFileError, match="no whole safetensors file|cannot be read"):
        read_content(path)["w"].read()


def test_many_tensors_are_read_in_the_time_of_one_header(tmp_path):
    """A header of 2,000 names, read anew for each tensor, takes seconds; once, some hundredths of one."""
    held = {f"blocks.{i}": torch.full((4,), float(i)) for i in range(2000)}
    save_file(held, tmp_path / "a.safetensors")
    content = read_content(tmp_path / "a.safetensors")
    found = bounded(lambda: {name: part.read() for name, part in content.items()}, seconds=2)
    assert all(torch.equal(found[name], held[name]) for name in held)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz", ""])
@pytest.mark.parametrize(("data", "message"), [
    (b"", "it is empty"), (b"<!doctype html>", "web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    (b"\x1f\x8b\x08" + bytes(20), "gzip"), (pickle.dumps({"a": 1}), "bare pickle"),
    (b"PK\x03\x04", "or it is cut off"), (b"\x00" * 50, "begins with"),
])  # fmt: skip
def test_what_is_no_weight_file_is_said_to_be_what_it_is(tmp_path, suffix, data, message):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    with pytest.raises(WeightFileError, match=f"is no whole (weight|safetensors) file: .*{message}"):
        read_content(path)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "pipe", tmp_path / "link")
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    for name in ("pipe", "link", "", "loop", "missing", "pipe/below"):
        for read in (read_content, read_json):
            with pytest.raises(WeightFileError, match="folder or a device|cannot be read"):
                read(tmp_path / name)
    saved(tmp_path / "a.pt", BASE)
    os.symlink(tmp_path / "a.pt", tmp_path / "good")  # as the hub's cache has them
    assert torch.equal(read_content(tmp_path / "good").read(), BASE)


@pytest.mark.parametrize(("text", "message"), [
    (b"", "no whole JSON file"), (b"{", "no whole JSON file"), (b"[" * 100_000, "no whole JSON file"),
    (b'{"a":' * 100_000, "no whole JSON file"),
    (b'{"a":' * 60 + b"1" + b"}" * 60, "50 levels"), (b'{"a": [' + b"1," * 200_000 + b"1]}", "200,000 values"),
    (b"\xff\xfe{}", "no whole JSON file"),
    (b'{"a": ' + b"9" * 5000 + b"}", "no whole JSON file"), (b'{"a": ' + b"9" * 4000 + b"}", "a number of 13288 bits"),
    (b"[]", "JSON list; expected an object"), (b"3", "JSON int"), (b'"x"', "JSON str"),
    (b'{"' + b"x" * 300 + b'": {"a": 1}}', "a name of 300 characters"),
])  # fmt: skip
def test_json_of_no_configuration_is_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(WeightFileError, match=message) as refusal:
        read_json(tmp_path / "a.json")
    assert len(str(refusal.value)) < 1000


def test_json_of_configurations(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(
        b'\xef\xbb\xbf{"seed": 340282366920938463463374607431768211455, "a": 1, "loss": NaN, "a": {"b": [null, "\xc3\xa9"]}}'
    )
    found = read_json(path)
    assert found["a"] == {"b": [None, "é"]} and found["seed"] == 2**128 - 1  # of equal names the last, as everywhere
    with open(path, "wb") as file:
        file.truncate(9 * 2**20)
    with pytest.raises(WeightFileError, match="9,437,184 bytes; a configuration is far smaller"):
        read_json(path)


def test_messages_are_short_and_printable(tmp_path):
    """Names of a stranger's file stand in messages; they must not move a terminal's cursor or fill its screen."""
    assert shortened("a\x1b[2Jb\nc") == "a?[2Jb\nc" and shortened("é" * 3000) == "é" * 1997 + "..."
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for i in range(5):
            archive.writestr(f"\x1b[2J{i}" + "x" * 60_000, b"")
    with pytest.raises(WeightFileError) as refusal:
        read_content(tmp_path / "a.pt")
    assert len(str(refusal.value)) < 500 + len(str(tmp_path)) and str(refusal.value).isprintable()


@pytest.mark.slow
def test_addresses_that_are_asked_for_are_those_of_the_file(tmp_path):
    """In a process that may have 1 GB more than torch takes at its start, files that promise terabytes are refused."""
    (tmp_path / "a").mkdir()
    rewritten(saved(tmp_path / "a" / "a.pt", BASE), lambda _: tensor((2**39,), (1,), n=2**39))
    npz(tmp_path / "a" / "b.npz", npy(header(shape=f"({2**38},)")))
    safe(tmp_path / "a" / "c.safetensors", {"w": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}})
    script = (
        "import resource, sys; from pathlib import Path; from vlsae.weight_files import *\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30,) * 2)\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try: read_content(path)\n    except WeightFileError as error: print('refused:', error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a")], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0 and done.stdout.count("refused:") == 3, done.stderr[-2000:]
