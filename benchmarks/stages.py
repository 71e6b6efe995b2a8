"""Where time goes: processor and wall time of stages and of the parts inside them, each moment counted once."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

REST = "rest"


class Stages:
    """Two clocks that always run for exactly one (stage, part): the innermost that is open.

    Attributes:
        cpu, wall: seconds by (stage, part).
        calls: how often each part was entered, by (stage, part).
    """

    def __init__(self):
        self.cpu: dict[tuple[str, str], float] = defaultdict(float)
        self.wall: dict[tuple[str, str], float] = defaultdict(float)
        self.calls: dict[tuple[str, str], int] = defaultdict(int)
        self._open = [("outside", REST)]
        self._undo: list[Callable[[], None]] = []
        self._since = (time.process_time(), time.perf_counter())

    def _charge(self) -> None:
        now = (time.process_time(), time.perf_counter())
        self.cpu[self._open[-1]] += now[0] - self._since[0]
        self.wall[self._open[-1]] += now[1] - self._since[1]
        self._since = now

    @contextmanager
    def stage(self, name: str | None = None, part: str = REST) -> Iterator[None]:
        """Charge what happens inside to a stage, or to a part of the stage that is open where `name` is None."""
        self._charge()
        self._open.append((name or self._open[-1][0], part))
        self.calls[self._open[-1]] += 1
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def watch(self, owner: object, attribute: str, name: str | None = None, part: str = REST) -> None:
        """Charge every call of a function or method to a stage or part, until `release`."""
        call = getattr(owner, attribute)

        @functools.wraps(call)
        def watched(*args, **options):
            with self.stage(name, part):
                return call(*args, **options)

        setattr(owner, attribute, watched)
        self._undo.append(lambda: setattr(owner, attribute, call))

    def release(self) -> None:
        """Stop the clocks, and leave every watched function as it was."""
        self._charge()
        while self._undo:
            self._undo.pop()()

    def names(self) -> list[str]:
        """Stages in the order in which they were first left."""
        return list(dict.fromkeys(stage for stage, _ in self.cpu))

    def total(self, stage: str, kind: str = "cpu") -> float:
        return sum(seconds for (name, _), seconds in getattr(self, kind).items() if name == stage)
