"""What `torch.save` writes is read back; what lies or attacks is refused and not executed."""

import collections
import pickle
import struct

import numpy as np
import pytest
import torch

from tests.strangers import BASE, attacks, bounded, rewritten, saved, tensor
from vlsae.pickles import Inert, leaves
from vlsae.stored import Stored, WeightFileError
from vlsae.weight_files import read_content


def opened(value):
    """With every `Stored` read, in the same nesting."""
    if isinstance(value, Stored):
        tensor = value.read()
        assert (tuple(tensor.shape), tensor.dtype) == (value.shape, value.dtype)
        return tensor
    if isinstance(value, dict):
        return {key: opened(part) for key, part in value.items()}
    return type(value)(opened(part) for part in value) if isinstance(value, (list, tuple)) else value


def same(a, b):
    """Equal in nesting, values, shapes, strides and types."""
    if isinstance(b, torch.Tensor):
        return torch.equal(a, b) and (a.dtype, a.stride(), a.storage_offset()) == (
            b.dtype,
            b.stride(),
            b.storage_offset(),
        )
    if isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in b)
    if isinstance(b, (list, tuple)):
        return isinstance(a, list) == isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return a == b


TENSORS = {
    "plain": BASE, "transposed": BASE.T, "column": BASE[:, 2], "every second": BASE[::2, 1::2], "scalar": torch.tensor(2.5),
    "empty": torch.empty(0), "empty matrix": torch.empty(3, 0), "expanded": torch.ones(1).expand(7, 3),
    "rank 5": torch.ones(1, 2, 1, 3, 1),
    "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), "large": torch.arange(70_000.0),
    **{str(dtype): (BASE * 50).to(dtype) for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
                                                       torch.int16, torch.int8, torch.uint8, torch.bool)},
}  # fmt: skip  # fmt: skip


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_what_torch_saves_is_read_back(tmp_path, protocol):
    held = {
        **TENSORS, "deep": {"a": [{"b": (BASE, [BASE.T])}], 0: {"exp_avg": BASE}}, "step": 7, "lr": 1e-3, "name": "é",
        "no": None,
        "numpy": [np.float64(1.5), np.float32(0.1), np.float16(2), np.int64(-3), np.bool_(True), np.uint8(200)],
        "size": torch.Size([2, 3]), "flags": [True, False], "bytes": b"ab\xff",
    }  # fmt: skip
    found = opened(read_content(saved(tmp_path / "a.pt", held, protocol)))
    assert same(found, torch.load(tmp_path / "a.pt", weights_only=False)) and same(found, held)


def test_parameters_modules_states_and_bare_tensors(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    state = opened(read_content(saved(tmp_path / "a.pt", module.state_dict())))
    assert same(state, dict(module.state_dict()))
    assert same(opened(read_content(saved(tmp_path / "b.pt", BASE))), BASE)
    parameter = torch.nn.Parameter(BASE.clone())
    parameter.note = "has a state"
    found = opened(read_content(saved(tmp_path / "c.pt", [torch.nn.Parameter(BASE), parameter])))
    assert torch.equal(found[0], BASE) and torch.equal(found[1], BASE)
    ordered = collections.OrderedDict([("z", BASE), ("a", 1)])
    assert list(read_content(saved(tmp_path / "d.pt", ordered))) == ["z", "a"]
    places = read_content(saved(tmp_path / "e.pt", [torch.device("cuda", 1), tmp_path / "x", {1, 2}]))
    assert places == ["cuda:1", str(tmp_path / "x"), [1, 2]]


def test_a_pickled_module_is_names_where_its_classes_are_known(tmp_path):
    module = torch.nn.Linear(3, 4)
    classes = [r"torch\.nn\.modules\.linear\.Linear"]
    found = read_content(saved(tmp_path / "a.pt", module), classes)
    assert isinstance(found, Inert) and found.state["in_features"] == 3
    assert torch.equal(dict(leaves(found))["_parameters.weight"].read(), module.weight)


def test_shared_storages_share_memory_and_are_read_once(tmp_path):
    storage = torch.arange(100_000.0)
    held = {str(i): storage[i : i + 5] for i in range(200)}
    content = read_content(saved(tmp_path / "a.pt", held))
    found = {name: part.read() for name, part in content.items()}
    assert all(torch.equal(found[name], held[name]) for name in held)
    assert len({part.untyped_storage().data_ptr() for part in found.values()}) == 1  # else 80 MB
    found["0"][1] = -1.0
    assert found["1"][0] == -1.0
    assert torch.equal(content["0"].read(), found["0"])
    del found
    assert content["1"].read()[0] == 1.0  # nothing is kept that nobody uses


def test_a_line_of_json_before_the_archive(tmp_path):
    saved(tmp_path / "a.pt", {"w": BASE.T})
    (tmp_path / "b.pt").write_bytes(b'{"d": 5}\n' + (tmp_path / "a.pt").read_bytes())
    assert same(opened(read_content(tmp_path / "b.pt")), {"w": BASE.T})


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", attacks("x"))
def test_payloads_are_refused_and_not_executed(tmp_path, name, protocol):
    mark = tmp_path / "executed"
    attack = attacks(mark)[name]
    if name == "getattr":
        attack.parts = (getattr, ("text", "upper"))
    path = saved(tmp_path / "a.pt", {"w": BASE, "attack": attack}, protocol)
    with pytest.raises(WeightFileError, match=r"holds a Python object, [\w.]+, .*weights_only=False") as refusal:
        read_content(path)
    assert str(path) in str(refusal.value) and not mark.exists()
    if name in ("mkdir", "system", "exec", "eval", "setstate", "nested", "load"):
        torch.load(path, weights_only=False)  # the payload is real
        assert mark.exists()


@pytest.mark.parametrize(("made", "message"), [
    (tensor((5, 7), (7, 1)), "beyond the 30 numbers"), (tensor((6, 5), (5, 1), offset=1), "beyond the 30"),
    (tensor((2**39,), (1,)), "beyond"), (tensor((2, 2), (2**39, 1)), "beyond"), (tensor((2**62,), (1,)), "impossible shape"),
    (tensor((2**30,), (0,)), "repeats 30 numbers; save it contiguous"), (tensor((-1, -30), (1, 1)), "impossible shape"),
    (tensor((30,), (-1,)), "impossible shape"), (tensor((30,), (1,), offset=-1), "impossible shape"),
    (tensor((0,), (1,), offset=31), "beyond"),
    (tensor((0, 2**39, 2**39), (1, 1, 1)), "beyond"), (tensor((True,), (1,)), "impossible shape"),
    (tensor((1.0,), (1,)), "impossible shape"),
    (tensor((1,) * 9, (1,) * 9), "without a shape"), (tensor((6, 5), (5,)), "without a shape"),
    (tensor([6, 5], [5, 1]), "without a shape"),
    (tensor(None, None), "without a shape"), (tensor((30,), (1,), n=31), "promises 31 numbers in a record that holds 30"),
    (tensor((30,), (1,), n=10**12), "promises 1,000,000,000,000"), (tensor((30,), (1,), n="30"), "unusual way"),
    (tensor((15,), (1,), storage="DoubleStorage"), "promises 30 numbers in a record that holds 15"),
    (tensor((30,), (1,), record="9"), "is missing"), (tensor((30,), (1,), record="../../x"), "is missing"),
    (tensor((30,), (1,), record=("x",)), "unusual way"),
    (tensor((30,), (1,), storage="ComplexFloatStorage"), "kind ComplexFloatStorage"),
    (tensor((30,), (1,), storage="mkdir"), "kind mkdir"), (tensor((30,), (1,), call="_rebuild_sparse_tensor"), "unusual kind"),
])  # fmt: skip
def test_tensors_that_lie_are_refused(tmp_path, made, message):
    path = rewritten(saved(tmp_path / "a.pt", BASE), lambda _: made)
    with pytest.raises(WeightFileError, match=message) as refusal:
        read_content(path)
    assert "no whole weight file: its pickle cannot be followed" in str(refusal.value)


def test_the_pickles_above_are_those_of_torch(tmp_path):
    path = rewritten(saved(tmp_path / "a.pt", BASE), lambda _: tensor((6, 5), (5, 1)))
    assert torch.equal(torch.load(path, weights_only=True), BASE) and torch.equal(read_content(path).read(), BASE)


def test_negative_views_and_kinds_of_numbers_without_a_storage_are_refused(tmp_path):
    path = rewritten(saved(tmp_path / "a.pt", BASE), lambda _: tensor((6, 5), (5, 1), more=({"neg": True},)))
    assert torch.equal(torch.load(path, weights_only=True), -BASE)
    with pytest.raises(WeightFileError, match="conjugate or negative"):
        read_content(path)
    for held in (BASE.to(torch.complex64), BASE.to(torch.float8_e4m3fn), BASE.to_sparse(), BASE.to("meta")):
        with pytest.raises(WeightFileError, match="pickle cannot be followed"):
            read_content(saved(tmp_path / "a.pt", held))


def test_a_call_does_not_copy_its_arguments(tmp_path):
    """A text of 1 MB through each of these a thousand times; copies would be 3 GB."""
    text = b"X" + struct.pack("<I", 2**20) + b"x" * 2**20
    repeated = (
        b"".join(b"c%b\nh\x00R" % name for name in (b"_codecs\nencode", b"torch\ndevice", b"__builtin__\nset")) * 1000
    )
    path = rewritten(saved(tmp_path / "a.pt", BASE), lambda _: b"\x80\x02(" + text + b"\x85q\x00" + repeated + b"l.")
    assert len(bounded(lambda: read_content(path), megabytes=16)) == 3001


def test_a_damaged_record_is_noticed(tmp_path):
    """Every bit of the tensors is under the archive's checksum."""
    path = saved(tmp_path / "a.pt", {"w": BASE})
    data = bytearray(path.read_bytes())
    at = bytes(data).index(BASE.numpy().tobytes())
    for bit in range(0, 8 * BASE.numel() * 4, 97):
        changed = bytearray(data)
        changed[at + bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        content = read_content(path)
        with pytest.raises(WeightFileError, match="checksum of a/data/0 is wrong"):
            content["w"].read()
    np.savez(tmp_path / "b.npz", w=BASE.numpy())
    data = bytearray((tmp_path / "b.npz").read_bytes())
    data[bytes(data).index(BASE.numpy().tobytes()) + 7] ^= 4
    (tmp_path / "b.npz").write_bytes(data)
    with pytest.raises(WeightFileError, match="CRC"):
        read_content(tmp_path / "b.npz")["w"].read()
