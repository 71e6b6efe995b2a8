"""What a user says about a dictionary whose file does not say everything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

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
    """

    found: Any
    question: str
    choices: str
    user_wins: bool = False
    needed: bool = True


def model(found: str | None = None, says: Any = None) -> Fact:
    """The model whose activations a dictionary reads; `says` is the file's own word where it is no name we can open."""
    said = f" (the file says {str(says)[:80]!r})" if says and found is None else ""
    return Fact(found, f"the model whose activations it reads{said}",
                "open_clip:ARCH/TAG, hf:ID, tiny, a folder, or unknown", user_wins=True)  # fmt: skip


def site(found: str | None = None, says: Any = None, width: int = 0) -> Fact:
    """The place in the model, by our names."""
    said = f" (the file says {str(says)[:80]!r})" if says and found is None else ""
    wide = f" of width {width}" if width else ""
    choices = (
        f"vision.BLOCK.resid_post, resid_pre, mlp_out or attn_out, text.BLOCK..., vision.pooled or text.pooled{wide}"
    )
    return Fact(found, f"where in the model{said}", f"{choices}, or unknown", user_wins=True)


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

    def _value(self, name: str, fact: Fact) -> Any:
        if name not in self.given:
            return fact.found
        answer = self.given[name]
        if fact.found is not None and not fact.user_wins and not _same(answer, fact.found):
            raise DialectError(f"{self.where} says {name}={fact.found!r}, you say {answer!r}; leave {name} out.")
        return None if isinstance(answer, str) and answer == UNKNOWN else answer


def _same(answer: Any, found: Any) -> bool:
    try:
        return bool(answer == found)
    except (RuntimeError, ValueError):  # an array of several numbers, which no file states
        return False
