"""Pickles as data: what they hold comes out, nothing is executed, and no pickle costs more than its length."""

import collections
import pickle
import struct

import pytest

from tests.strangers import Called, bounded
from vlsae.pickles import Global, Inert, PickleError, leaves, parse

PROTO, STOP = b"\x80\x02", b"."


def value(data):
    return parse(data, stored=lambda name: ("stored", name), build=lambda call: call)


PLAIN = {
    "none": None, "truth": [True, False], "whole": [0, 255, 65535, -1, 2**31, -(2**63), 2**100], "text": ["", "é", "x" * 300],
    "real": [1.5, float("inf"), -0.0], "nested": {"a": {"b": (1, (2,), (1, 2, 3), (1, 2, 3, 4), ())}}, 7: "small key",
    "list": [], "dict": {}, "many": list(range(2000)), "names": {f"name{i}": i for i in range(2000)},
}  # fmt: skip


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("python", [False, True], ids=["C", "python"])
def test_plain_values_are_what_pickle_reads(protocol, python):
    """Both of Python's picklers, which write different operations for the same value."""
    data = (pickle._dumps if python else pickle.dumps)(PLAIN, protocol)
    assert value(data) == PLAIN == pickle.loads(data)


def test_protocols_without_binary_operations():
    assert value(pickle.dumps({"a": [1, 2.5, True, None, "x", (1, 2)]}, 0)) == {"a": [1, 2.5, True, None, "x", (1, 2)]}


def test_shared_values_stay_shared_and_cycles_stay_cycles():
    shared, cycle, ring = [1], [], []
    cycle.append(cycle)
    ring.append((ring,))  # Python writes it with POP or POP_MARK
    for protocol in (1, 2, 4):
        found = value(pickle.dumps([shared, shared, cycle, ring], protocol))
        assert found[0] is found[1] and found[2][0] is found[2] and found[3][0][0] is found[3]


def test_sets_are_lists_and_bytes_are_bytes():
    assert (
        sorted(value(pickle.dumps({3, 1, 2}, 4))) == [1, 2, 3] == sorted(value(pickle.dumps(frozenset({3, 1, 2}), 4)))
    )
    assert value(pickle.dumps([b"ab", b"c" * 300], 4)) == [b"ab", b"c" * 300]
    assert value(pickle.dumps(bytearray(b"ab"), 5)) == b"ab"


class Point:
    def __init__(self):
        self.x, self.shape = 1, (2, 3)


class Slots:
    __slots__ = ("y",)

    def __init__(self):
        self.y = 2


def test_objects_are_their_names_arguments_and_state():
    for protocol in (2, 4):
        point, slots, counts = value(pickle.dumps([Point(), Slots(), collections.Counter("aab")], protocol))
        assert (point.name, point.state) == (f"{__name__}.Point", {"x": 1, "shape": (2, 3)})
        assert slots.state == {"y": 2} and counts.args == ({"a": 2, "b": 1},)
    assert isinstance(value(pickle.dumps(Point, 4)), Global)
    ordered = value(pickle.dumps(collections.OrderedDict(a=1), 2))
    assert isinstance(ordered, Inert) and ordered.items == {"a": 1}


def test_calls_are_names(tmp_path):
    """Chains of calls, as they get around lists of what is forbidden; `pickle` executes each of them."""
    mark = tmp_path / "executed"
    code = f"__import__('os').mkdir({str(mark)!r})"
    for call in (Called(exec, code), Called(eval, code), Called(Point, state=Called(exec, code))):
        for protocol in (2, 4):
            assert isinstance(value(pickle.dumps([call], protocol))[0], Inert)
    chain = b"cbuiltins\ngetattr\n(cos\nsystem\nS'x'\ntR"  # the result of a call cannot be called
    with pytest.raises(PickleError, match="STRING, which weights have no need of"):
        value(chain + STOP)
    with pytest.raises(PickleError, match="no named function"):
        value(b"cbuiltins\ngetattr\n(cos\nmkdir\nVx\ntR(Vx\ntR.")
    assert not mark.exists()
    with pytest.raises(FileNotFoundError):
        pickle.loads(pickle.dumps(Called(open, tmp_path / "missing")))  # calls are real


@pytest.mark.parametrize("data", [
    b"(Vmade\nios\nmkdir\n.", b"(cos\nmkdir\nVmade\no.", b"\x82\x01.", b"Pname\n.", b"\x80\x05\x97.", b"2.",
], ids=["INST", "OBJ", "EXT1", "PERSID", "NEXT_BUFFER", "DUP"])  # fmt: skip
def test_operations_of_no_weight_file_are_refused(data):
    with pytest.raises(PickleError, match="which weights have no need of"):
        value(data)


@pytest.mark.parametrize("data", [
    b"", b"\x80", b"K", b"K\x01", b"K\x01K\x02.", b".", b"0.", b"h\x00.", b"(", b"t.", b"a.", b"K\x01K\x02a.",
    b"K\x01K\x02K\x03s.", b"}(K\x01u.", b"R.", b"K\x01)R.", b"cos\nmkdir\nK\x01R.", b"\x93.", b"K\x01K\x02\x93.",
    b"b.", b"Q.", b"\x85.", b"K\x01\x87.", b"\xff.", b"q\x00.", b"\x94.", b"X\xff\xff\xff\x7fa.",
    b"\x8d" + b"\xff" * 8 + b"a.", b"\x8b\xff\xff\xff\x7f\x00.", b"\x8b\xff\xff\xff\xff.", b"cos.", b"c\xff\xff\n\n.",
    b"Iabc\n.", b"Fabc\n.", b"X\x01\x00\x00\x00\xff.", b"\x96" + b"\xff" * 8 + b".", b"e.", b"u.", b"d.", b"(K\x01d.",
    b"<html>", b"version https://git-lfs", b"p\n.", b"g9\n.", b"j\xff\xff\xff\xff.", b"\x81.", b"\x92.", b"\x91.",
    b"\x90.", b"1.",
])  # fmt: skip
def test_damaged_pickles_are_refused(data):
    with pytest.raises(PickleError) as refusal:
        value(data)
    assert 10 < len(str(refusal.value)) < 200


def _memo(i):
    return b"r" + struct.pack("<I", i)


def _get(i):
    return b"j" + struct.pack("<I", i)


def test_a_long_pickle_ends():
    with pytest.raises(PickleError, match="more than 1,000,000 operations"):
        bounded(lambda: value(PROTO + b"N0" * 600_000 + b"N."))


def test_exponential_nesting_is_never_walked_through():
    """Forty levels of pairs of the same pair: 2^40 leaves in 200 bytes. As keys, tuples would be hashed."""
    pairs = PROTO + b")q\x000" + b"h\x00h\x00\x86q\x000" * 40 + b"h\x00"
    nested = bounded(lambda: value(pairs + STOP))
    assert len(nested) == 2
    with pytest.raises(PickleError, match="more than 200,000 values or 50 levels"):
        bounded(lambda: list(leaves(nested)))
    keyed = bounded(lambda: value(PROTO + b"}" + pairs[2:] + b"K\x01s."))
    assert keyed == {"<tuple>": 1}
    inert = bounded(lambda: value(PROTO + b")q\x000" + b"cx\ny\nh\x00h\x00\x86Rq\x000" * 40 + b"h\x00."))
    assert repr(inert) == "<x.y>"


def test_deep_nesting_is_built_and_dropped_without_recursion():
    bounded(lambda: value(PROTO + b")" + b"\x85" * 100_000 + STOP))
    deep = bounded(lambda: value(PROTO + b"]" * 100_000 + b"a" * 99_999 + STOP))
    with pytest.raises(PickleError, match="50 levels"):
        list(leaves(deep))


def test_a_list_that_holds_itself_many_times_has_no_leaves():
    """Each of fifty levels of this list of 10,000 times itself would add 10,000 names, a hundred megabytes in all."""
    loop = value(PROTO + b"]q\x00(" + b"h\x00" * 10_000 + b"e.")
    with pytest.raises(PickleError, match="more than 30,000 values"):
        bounded(lambda: list(leaves(loop, n_at_most=30_000)), megabytes=16)


def test_numbers_that_share_a_hash_are_no_keys_of_a_dictionary():
    """Multiples of 2^61 - 1 all hash to 0: `pickle` compares the keys of this dictionary two billion times, half a minute."""
    numbers = [i * (2**61 - 1) for i in range(1, 60_001)]
    items = b"".join(b"\x8a\x0a" + number.to_bytes(10, "little") + b"N" for number in numbers)
    found = bounded(lambda: value(PROTO + b"}(" + items + b"u."))
    assert list(found)[:2] == [str(2**61 - 1), str(2**62 - 2)] and len(found) == len(numbers)


def test_one_state_set_many_times_is_not_copied():
    """An object with 10,000 attributes, set on 10,000 objects: copies would hold 100 million."""
    names = b"".join(b"X\x05\x00\x00\x00%05dN" % i for i in range(10_000))
    data = PROTO + b"}(" + names + b"uq\x000cx\ny\nq\x010(" + b"h\x01)Rh\x00b" * 10_000 + b"l."
    objects = bounded(lambda: value(data), megabytes=32)
    assert len(objects) == 10_000 and objects[0].state is objects[-1].state


@pytest.mark.parametrize("data", [
    b"\x8a\xff" + b"\x7f" * 255 + STOP, b"\x8b" + struct.pack("<i", 2**20) + b"\x7f" * 2**20 + STOP,
    b"L" + b"9" * 4000 + b"L\n.", b"L" + b"9" * 10**6 + b"L\n.", b"I" + b"9" * 10**6 + b"\n.",
], ids=["LONG1", "LONG4", "LONG", "long LONG", "long INT"])  # fmt: skip
def test_integers_that_take_ages_to_print_are_refused(data):
    with pytest.raises(PickleError, match=r"integer of [\d,]+ bits|Exceeds the limit"):
        bounded(lambda: value(data))


def test_lengths_that_lie_and_huge_numbers_of_the_memo_take_no_memory():
    for data in (b"\x8b\xff\xff\xff\x7f\x00.", b"X\xff\xff\xff\x7fa.", b"\x8e" + struct.pack("<Q", 10**12) + b"a."):
        with pytest.raises(PickleError, match=r"expected \d+ bytes|not enough data"):
            bounded(lambda data=data: value(data), megabytes=1)
    found = bounded(lambda: value(PROTO + b"K\x01" + _memo(2**32 - 1) + b"0" + _get(2**32 - 1) + STOP), megabytes=1)
    assert found == 1  # the memo is a dictionary; as a list it had 32 GB
    assert isinstance(value(pickle.dumps(Called(bytearray, 10**12), 2)), Inert)


def test_long_names_are_refused():
    """A name of megabytes could be looked up, copied and compared a million times."""
    with pytest.raises(PickleError, match="names a class with 1,000,00. characters"):
        value(b"c" + b"a" * 10**6 + b"\nx\n.")
    with pytest.raises(PickleError, match="a name of 201 characters"):
        list(leaves({"a" * 200: {"b": 1}}))
    assert list(leaves({"a" * 198: {"b": 1}}))


def test_leaves_come_in_order_with_their_names():
    thing = Inert("x.Y", ())
    thing.state, thing.items = {"w": 1}, {"v": 2}
    held = {"a": {"b": 1, 3: [4, (5,)]}, "o": thing, "empty": {}, "none": None}
    expected = [("a.b", 1), ("a.3.0", 4), ("a.3.1.0", 5), ("o.w", 1), ("o.v", 2), ("none", None)]
    assert list(leaves(held)) == expected
    assert list(leaves(7)) == [("", 7)]
    levels = 1
    for _ in range(50):
        levels = {"a": levels}
    assert list(leaves(levels)) == [(".".join("a" * 50), 1)]
    with pytest.raises(PickleError, match="50 levels"):
        list(leaves({"a": {"a": levels}}))
