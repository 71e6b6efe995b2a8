"""Whatever is done to a checkpoint: a dictionary with finite codes comes out, or one message, and nothing is executed."""

import io
import json
import random
import resource
import shutil
import struct
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.contract.test_dictionaries import make
from tests.interop.make_fixtures import FIXTURES
from tests.interop.mutations import MUTATIONS, Files
from vlsae.dictionaries import DICTIONARIES
from vlsae.dictionaries.checkpoint import CheckpointError
from vlsae.interop.load import load_dictionary
from vlsae.stored import MESSAGE_AT_MOST

NOT_OF_THE_CHECKPOINT = ("case.json", "expected.st")
TAME = 1e12  # weights beyond it give codes that float32 need not hold
HELD_BACK = 2**30  # bytes; all files have less than 40 kB, and torch needs some for itself


def files_of(folder):
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in NOT_OF_THE_CHECKPOINT)
    return Files({path.relative_to(folder).as_posix(): path.read_bytes() for path in found})


def fixtures():
    """Each fixture as its files, the path that is opened, and the answers it needs."""
    for path in sorted(FIXTURES.rglob("case.json")):
        facts = json.loads(path.read_text())
        yield files_of(path.parent), facts["opens"], {"model": "unknown", "site": "unknown"} | facts["answers"]


class Cases(list):
    def __repr__(self):  # hypothesis prints it where an example fails
        return f"<{len(self)} cases>"


@pytest.fixture(scope="module")
def root():
    """A folder in memory where the system has one: two thousand checkpoints are written and removed."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def cases(root):
    """All fixtures, and our own folder of every family."""
    own = [(files_of(make(family).save(root / family)), ".", {}) for family in DICTIONARIES]
    return Cases([*own, *fixtures()])


@pytest.fixture(scope="module")
def memory():
    """A gigabyte more than is in use, so that a size that lies is an error of memory and fails the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + HELD_BACK, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def outcome(files, opens, answers, folder):
    """The dictionary, or None where it is refused with a message for people."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    try:
        return load_dictionary(folder / opens, **answers)
    except CheckpointError as error:
        assert 20 < len(str(error)) <= MESSAGE_AT_MOST
        assert all(c.isprintable() or c == "\n" for c in str(error))
        return None


def has_finite_codes(dictionary):
    if not all((value.abs() < TAME).all() for value in dictionary.state_dict().values()):
        return True
    x = torch.randn(2, dictionary.d, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            z = dictionary.encode(x)
    except ValueError as error:  # atoms may have any norm between steps of training, and are then not pursued
        return dictionary.family == "matching_pursuit" and "Atoms have norms" in str(error)
    return z.shape == (2, dictionary.n_latents) and bool(torch.isfinite(z).all())


def held(cases, root, number, mutation, seed):
    """One case, which fails where anything but a dictionary or a message comes out."""
    files, opens, answers = cases[number % len(cases)]
    changed = Files(files)
    mutation(changed, random.Random(seed), cases, str(root / "executed"))
    dictionary = outcome(changed, opens, answers, root / "case")
    assert dictionary is None or has_finite_codes(dictionary)
    assert not (root / "executed").exists()


ANY = given(number=st.integers(0, 10**6), mutation=st.sampled_from(MUTATIONS), seed=st.integers(0, 2**32))
SAME_EVERYWHERE = settings(derandomize=True, deadline=10_000, database=None, suppress_health_check=list(HealthCheck),
                           phases=[Phase.generate, Phase.shrink])  # fmt: skip


@settings(SAME_EVERYWHERE, max_examples=1800)
@ANY
def test_a_damaged_or_hostile_checkpoint(cases, memory, root, number, mutation, seed):
    held(cases, root, number, mutation, seed)


@pytest.mark.slow
@settings(SAME_EVERYWHERE, max_examples=50_000)
@ANY
def test_many_damaged_or_hostile_checkpoints(cases, memory, root, number, mutation, seed):
    held(cases, root, number, mutation, seed)


@settings(SAME_EVERYWHERE, max_examples=250)
@given(number=st.integers(0, 10**6), place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_bit_of_an_archives_tensors_is_refused_or_never_read(cases, root, number, place, bit):
    """The checksum of a record catches it; a record of no part in the dictionary may be damaged."""
    archives = [case for case in cases if is_archive(case[0][case[0].weights])]
    files, opens, answers = archives[number % len(archives)]
    data = bytearray(files[files.weights])
    stretches = tensor_data(bytes(data))
    begin, end = stretches[place % len(stretches)]
    data[begin + place % (end - begin)] ^= 1 << bit
    changed = outcome(Files({**files, files.weights: bytes(data)}), opens, answers, root / "case")
    if changed is not None:
        whole = outcome(files, opens, answers, root / "case")
        assert all(torch.equal(value, whole.state_dict()[name]) for name, value in changed.state_dict().items())
        assert changed.settings == whole.settings and changed.metadata == whole.metadata


def is_archive(data):
    return zipfile.is_zipfile(io.BytesIO(data))


def tensor_data(data):
    """Where the records of numbers begin and end."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = [
            i for i in archive.infolist() if ("/data/" in i.filename or i.filename.endswith(".npy")) and i.file_size
        ]
    starts = [
        i.header_offset + 30 + sum(struct.unpack("<2H", data[i.header_offset + 26 : i.header_offset + 30]))
        for i in infos
    ]
    return [(start, start + info.file_size) for start, info in zip(starts, infos)]
