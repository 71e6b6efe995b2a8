"""Pickles read as data: nothing is imported and nothing is called, whatever a file asks for."""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": list}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
LITERALS = ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "FLOAT", "BINFLOAT", "BINUNICODE",
            "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8",
            "SHORT_BINSTRING", "BINSTRING")  # fmt: skip
NAME_AT_MOST = 200  # characters of a class, function or dotted name; they are copied and compared many times
BITS_AT_MOST = 128  # of an integer; seeds are the largest that anyone writes, and longer ones are slow to print
LEVELS_AT_MOST = 50  # of nested containers
_MARK = object()


class PickleError(ValueError):
    """A pickle that is damaged, or that does what no file of weights does."""


class Global:
    """The name of a class or function that a pickle mentions; it stays a name."""

    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Inert:
    """What a pickle would have made by a call: the name of what was to be called, its arguments and the state set after it.

    Attributes:
        name: dotted name of the class or function.
        args: arguments, as a tuple; like all that a pickle holds, they may be nested without end.
        state: attributes that an object would have had, by name; items: what was to be put into it, for sub-classes of dict.
    """

    def __init__(self, name: str, args: tuple):
        self.name, self.args = name, args
        self.state: dict[str, Any] = {}
        self.items: dict[Any, Any] = {}

    def __repr__(self) -> str:
        return f"<{self.name}>"  # arguments may refer to each other without end


def parse(data: bytes, stored: Callable[[Any], Any], build: Callable[[Inert], Any], n_at_most: int = 1_000_000) -> Any:
    """The value of a pickle, in which every call is an `Inert` that `build` may replace.

    Args:
        data: a pickle of any protocol.
        stored: gives the value of a persistent id, which is how torch names a tensor's storage.
        build: called with every `Inert` when it is made and before its state is known; what it returns takes its place.
        n_at_most: operations that are followed.

    Returns:
        Dictionaries, lists, tuples, plain values, `Global`s and whatever `stored` and `build` gave; sets are lists, and keys
        that are neither text nor small integers are their text. It may be nested without end: go through it with `leaves`.

    Raises:
        PickleError: for a pickle that ends early, uses operations that no weight file needs, or is too long. Time and memory
            grow with the length of the pickle, whatever it says.

    Example:
        >>> import pickle, os
        >>> class Payload:
        ...     def __reduce__(self):
        ...         return os.mkdir, ("never made",)
        >>> parse(pickle.dumps({"w": Payload()}), stored=lambda name: name, build=lambda call: call)
        {'w': <posix.mkdir>}
    """
    machine = _Machine(stored, build)
    for n, (name, argument) in enumerate(_operations(data)):
        if n > n_at_most:
            raise PickleError(f"it has more than {n_at_most:,} operations")
        try:
            machine.step(name, argument)
        except (IndexError, KeyError, TypeError, AttributeError, UnicodeError, OverflowError) as error:
            raise PickleError(f"its {name} does not fit what came before ({type(error).__name__})") from error
    return machine.result()


def _operations(data: bytes) -> Iterator[tuple[str, Any]]:
    try:
        for operation, argument, _ in pickletools.genops(data):
            yield operation.name, argument
    except (ValueError, UnicodeError, IndexError, OverflowError, MemoryError) as error:
        raise PickleError(f"it ends early or is damaged: {str(error)[:100]}") from error


class _Machine:
    """The stack machine that a pickle is a program of, without the operations that import or call."""

    def __init__(self, stored: Callable[[Any], Any], build: Callable[[Inert], Any]):
        self.stored, self.build = stored, build
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.stopped = False

    def result(self) -> Any:
        if not self.stopped or len(self.stack) != 1:
            raise PickleError("it does not end with one value")
        return self.stack[0]

    def step(self, name: str, argument: Any) -> None:
        if name in LITERALS:
            if type(argument) is int and argument.bit_length() > BITS_AT_MOST:
                raise PickleError(f"it holds an integer of {argument.bit_length():,} bits")
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in EMPTY:
            self.stack.append(EMPTY[name]())
        elif name in TUPLES:
            self.stack.append(self._last(TUPLES[name]))
        elif name not in ("PROTO", "FRAME"):
            method = getattr(self, f"_{name.lower()}", None)
            if method is None:
                raise PickleError(f"it uses the operation {name}, which weights have no need of")
            method(argument)

    def _marked(self) -> list[Any]:
        at = len(self.stack) - 1
        while at >= 0 and self.stack[at] is not _MARK:
            at -= 1
        if at < 0:
            raise IndexError
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def _stop(self, _) -> None:
        self.stopped = True

    def _mark(self, _) -> None:
        self.stack.append(_MARK)

    def _pop(self, _) -> None:
        self.stack.pop()

    def _pop_mark(self, _) -> None:
        self._marked()

    def _put(self, at: int) -> None:
        self.memo[at] = self.stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _get(self, at: int) -> None:
        self.stack.append(self.memo[at])

    _binget = _long_binget = _get

    def _tuple(self, _) -> None:
        self.stack.append(tuple(self._marked()))

    def _last(self, n: int) -> tuple:
        values = tuple(self.stack[-n:])
        if len(values) < n:
            raise IndexError
        del self.stack[-n:]
        return values

    def _list(self, _) -> None:
        self.stack.append(self._marked())

    _frozenset = _list

    def _dict(self, _) -> None:
        values = self._marked()
        self.stack.append({})
        self._set(values)

    def _append(self, _) -> None:
        self._extend(self._last(1))

    def _appends(self, _) -> None:
        self._extend(self._marked())

    _additems = _appends

    def _extend(self, values: Sequence[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise PickleError("it appends to something that is no list")
        self.stack[-1].extend(values)

    def _setitem(self, _) -> None:
        self._set(self._last(2))

    def _setitems(self, _) -> None:
        self._set(self._marked())

    def _set(self, values: Sequence[Any]) -> None:
        target = self.stack[-1]
        into = target.items if isinstance(target, Inert) else target
        if not isinstance(into, dict) or len(values) % 2:
            raise PickleError("it sets items of something that is no dictionary")
        for key, value in zip(values[::2], values[1::2]):
            into[_key(key)] = value

    def _global(self, argument: str) -> None:
        self._mention(argument.replace(" ", "."))

    def _stack_global(self, _) -> None:
        module, name = self._last(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("a global has no name")
        self._mention(f"{module}.{name}")

    def _mention(self, name: str) -> None:
        if len(name) > NAME_AT_MOST:
            raise PickleError(f"it names a class with {len(name):,} characters")
        self.stack.append(Global(name))

    def _reduce(self, _) -> None:
        function, args = self._last(2)
        self._call(function, args)

    _newobj = _reduce

    def _newobj_ex(self, _) -> None:
        cls, args, _ = self._last(3)
        self._call(cls, args)

    def _call(self, function: Any, args: Any) -> None:
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise PickleError("it calls something that is no named function")
        self.stack.append(self.build(Inert(function.name, args)))

    def _build(self, _) -> None:
        (state,) = self._last(1)
        target = self.stack[-1]
        if isinstance(target, Inert):
            parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)  # (attributes, slots)
            found = [part for part in parts if isinstance(part, dict) and part]
            if len(found) > 1:
                raise PickleError("an object has both attributes and slots")
            target.state = found[0] if found else {}  # not copied: the same one can be set a million times

    def _binpersid(self, _) -> None:
        (name,) = self._last(1)
        self.stack.append(self.stored(name))


def _key(key: Any) -> Hashable:
    """A key whose hash cannot be chosen so that a dictionary takes ages, as that of a tuple or of a large number can."""
    if key is None or isinstance(key, (str, bytes)) or (isinstance(key, int) and abs(key) < 2**16):
        return key
    return repr(key) if isinstance(key, (int, float)) else f"<{type(key).__name__}>"


def leaves(value: Any, name: str = "", n_at_most: int = 200_000) -> Iterator[tuple[str, Any]]:
    """All values inside nested dictionaries, lists and objects, with their dotted names.

    A value that stands in several places comes once for each, so that a small pickle can have very many.

    Raises:
        PickleError: for more than `n_at_most` values, more than 50 levels, or names of more than 200 characters.

    Example:
        >>> list(leaves({"encoder": {"bias": 1}, "sizes": [2, 3]}))
        [('encoder.bias', 1), ('sizes.0', 2), ('sizes.1', 3)]
    """
    todo, n = [(name, value, 0)], 0
    while todo:
        name, value, depth = todo.pop()
        inner = parts(value)
        if inner is None:
            yield name, value
            continue
        n += 1 + len(inner)
        if n > n_at_most or depth > LEVELS_AT_MOST:
            raise PickleError(f"it holds more than {n_at_most:,} values or {LEVELS_AT_MOST} levels")
        todo += [(_dotted(name, key), part, depth + 1) for key, part in reversed(inner)]


def _dotted(name: str, key: Any) -> str:
    if isinstance(key, (str, bytes)) and len(key) + len(name) > NAME_AT_MOST:
        raise PickleError(f"it has a name of {len(key) + len(name):,} characters")
    return f"{name}.{key}" if name else str(key)


def parts(value: Any) -> list[tuple[Any, Any]] | None:
    """What a container or object holds, by key; None for a value that is neither."""
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if isinstance(value, Inert):
        return [*value.state.items(), *value.items.items()]
    return None
