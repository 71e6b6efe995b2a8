"""What a user says about a dictionary whose file does not say everything."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from vlsae.backbones.site import Site
from vlsae.interop.dialect import DialectError

UNKNOWN = "unknown"  # an answer to "model" and "site": the user knows that nobody knows


@dataclass(frozen=True)
class Fact:
    """One thing that is needed to use a dictionary.

    Args:
        found: what the file says; None where it does not.
        question: what is asked, where it does not.
        choices: the possible answers, in words.
        user_wins: whether an answer may differ from the file (names of models differ between libraries).
        needed: whether it must be known; else an unanswered one is None.
        may_be_unknown: whether "unknown" is an answer, which gives None.
        check: returns an answer as it is used, and raises a ValueError for an impossible one; `number`, `truth`, ...
    """

    found: Any
    question: str
    choices: str
    user_wins: bool = False
    needed: bool = True
    may_be_unknown: bool = False
    check: Callable[[Any], Any] | None = None


def number(least: float = -math.inf, most: float = math.inf, whole: bool = False) -> Callable[[Any], int | float]:
    """A check for finite numbers from `least` to `most`, also those of numpy.

    Example:
        >>> number(1, 8, whole=True)(4)
        4
    """

    def check(value: Any) -> int | float:
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not real or not math.isfinite(value) or not least <= value <= most or (whole and value != int(value)):
            kind = "whole number" if whole else "number"
            bounds = [f"at least {least:g}"] * (least > -math.inf) + [f"at most {most:g}"] * (most < math.inf)
            raise ValueError(f"expected a finite {kind}{', ' if bounds else ''}{' and '.join(bounds)}")
        return int(value) if whole else float(value)

    return check


def truth(value: Any) -> bool:
    """A check for True and False."""
    if not isinstance(value, bool):
        raise ValueError("expected True or False")
    return value


def one_of(*choices: str) -> Callable[[Any], str]:
    """A check for one of some words."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return value

    return check


def word(value: Any) -> str:
    """A check for text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError("expected text")
    return value


def model(found: str | None = None, says: Any = None) -> Fact:
    """The model whose activations a dictionary reads; `says` is the file's own word where it is no name we can open."""
    said = f" (the file says {str(says)[:80]!r})" if says and found is None else ""
    return Fact(found, f"the model whose activations it reads{said}",
                "open_clip:ARCH/TAG, hf:ID, tiny, a folder, or unknown", user_wins=True, may_be_unknown=True,
                check=word)  # fmt: skip


def site(found: str | None = None, says: Any = None, width: int = 0) -> Fact:
    """The place in the model, by our names."""
    said = f" (the file says {str(says)[:80]!r})" if says and found is None else ""
    wide = f" of width {width}" if width else ""
    choices = (
        f"vision.BLOCK.resid_post, resid_pre, mlp_out or attn_out, text.BLOCK..., vision.pooled or text.pooled{wide}"
    )
    return Fact(found, f"where in the model{said}", f"{choices}, or unknown", user_wins=True, may_be_unknown=True,
                check=lambda value: str(Site.parse(word(value))))  # fmt: skip


class Answers:
    """The options that a user gave, by name.

    Args:
        given: names and values.
        where: the file they are about, for messages.
        known: what the caller can tell besides; used where a question is open, and no mistake where none is.

    Attributes:
        taken: what was used of `known`.
    """

    def __init__(self, given: Mapping[str, Any], where: str, known: Mapping[str, Any] | None = None):
        self.given, self.where = {k: v for k, v in given.items() if v is not None}, where
        self.known, self.taken = dict(known or {}), {}

    def settle(self, **facts: Fact) -> SimpleNamespace:
        """Each fact as the file or the user says it.

        Raises:
            DialectError: for facts that nobody told, all of them in one message with the possible answers; for answers that
                contradict the file; and for answers to questions that do not arise.
        """
        unknown = sorted(set(self.given) - set(facts))
        if unknown:
            raise DialectError(f"{self.where} takes no {', '.join(unknown)}; it takes {', '.join(facts) or 'nothing'}.")
        self.taken = {
            name: self.known[name]
            for name, fact in facts.items()
            if fact.found is None and name not in self.given and name in self.known
        }
        self.given |= self.taken
        missing = [
            name for name, fact in facts.items() if fact.needed and fact.found is None and name not in self.given
        ]
        if missing:
            lines = "".join(f"\n  {name}=...: {facts[name].question} - {facts[name].choices}" for name in missing)
            raise DialectError(f"{self.where} does not say all that is needed; say it yourself:{lines}")
        return SimpleNamespace(**{name: self._value(name, fact) for name, fact in facts.items()})

    def recorded(self) -> dict[str, Any]:
        """What was said, as a checkpoint can hold it: numbers and words, others by their text."""
        said = {name: value for name, value in self.given.items() if not (isinstance(value, str) and value == UNKNOWN)}
        return {name: v if isinstance(v, (bool, int, float, str)) else _short(v) for name, v in said.items()}

    def _value(self, name: str, fact: Fact) -> Any:
        if name not in self.given:
            return fact.found
        answer = self.given[name]
        if isinstance(answer, str) and answer == UNKNOWN:
            if not fact.may_be_unknown:
                raise DialectError(
                    f"{self.where} needs {name}, {fact.question}: it cannot be unknown - {fact.choices}."
                )
            return None
        if fact.check is not None:
            try:
                answer = fact.check(answer)
            except ValueError as error:
                raise DialectError(f"{name}={_short(answer)} is no answer for {self.where}: {error}.") from error
        if fact.found is not None and not fact.user_wins and not _same(answer, fact.found):
            raise DialectError(f"{self.where} says {name}={fact.found!r}, you say {_short(answer)}; leave {name} out.")
        return answer


def _short(answer: Any) -> str:
    text = repr(answer)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _same(answer: Any, found: Any) -> bool:
    try:
        return bool(answer == found)
    except (RuntimeError, ValueError):  # an array of several numbers, which no file states
        return False
