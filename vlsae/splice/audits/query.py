"""The language of concept queries: AND, OR, NOT, parentheses, phrases in quotes and least weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

TOKEN = re.compile(r'\s*(?:(?P<mark>[()])|"(?P<phrase>[^"]*)"|(?P<word>[^\s()":]+)|(?P<least>:\s*[^\s()":]*))')
OPERATORS = ("AND", "OR", "NOT")
DEEPEST = 50


class QueryError(ValueError):
    """A query that cannot be read; `position` counts characters from 0."""

    def __init__(self, query: str, position: int, problem: str):
        self.position = position
        super().__init__(f"Position {position} of the query: {problem}\n  {query}\n  {' ' * position}^")


@dataclass(frozen=True)
class Term:
    """A concept, present with at least `least` weight."""

    text: str
    least: float
    position: int


@dataclass(frozen=True)
class Not:
    """Where the part does not hold."""

    part: Node


@dataclass(frozen=True)
class And:
    """Where all parts hold."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Or:
    """Where any part holds."""

    parts: tuple[Node, ...]


Node = Term | Not | And | Or


def wanted_terms(node: Node) -> Iterator[Term]:
    """Terms whose presence speaks for a hit: those not under a NOT."""
    if isinstance(node, Term):
        yield node
    elif isinstance(node, (And, Or)):
        for part in node.parts:
            yield from wanted_terms(part)


def parse(query: str) -> Node:
    """Read a query.

    `or := and {OR and}; and := not {[AND] not}; not := NOT not | '(' or ')' | concept [':' weight]`. Operators are in
    capitals; NOT binds closest, then AND, which may be left out, then OR. A concept of several words, or one that
    contains a sign of the language, is put into double quotes.

    Args:
        query: such as 'dog AND (red OR "light blue":0.05) NOT grass'.

    Returns:
        The tree.

    Raises:
        QueryError: a ValueError with the position of the fault.

    Example:
        >>> parse('dog NOT "polar bear":0.1')
        And(parts=(Term(text='dog', least=0.0, position=0), Not(part=Term(text='polar bear', least=0.1, position=8))))
    """
    return _Parser(query).parse()


class _Parser:
    def __init__(self, query: str):
        self.query, self.at, self.depth = query, 0, 0
        self.tokens = list(self._tokens())

    def _tokens(self) -> Iterator[tuple[str, str, int]]:
        place = 0
        while self.query[place:].strip():
            found = TOKEN.match(self.query, place)
            if not found:
                here = place + len(self.query[place:]) - len(self.query[place:].lstrip())
                raise QueryError(self.query, here, "the quotation mark is never closed; close it after the phrase.")
            kind = found.lastgroup
            text, start = found[kind], found.start(kind) - (kind == "phrase")
            if kind == "word" and text in OPERATORS:
                kind = "operator"
            yield kind, text, start
            place = found.end()

    def peek(self) -> tuple[str, str, int]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "the end", len(self.query))

    def take(self, *texts: str) -> bool:
        found = self.next_is(*texts)
        self.at += found
        return found

    def next_is(self, *texts: str) -> bool:
        return self.peek()[0] in ("operator", "mark") and self.peek()[1] in texts

    def parse(self) -> Node:
        node = self.either()
        kind, text, place = self.peek()
        if kind != "end":
            raise QueryError(self.query, place, f"expected AND, OR, NOT, a concept or the end, found {text!r}.")
        return node

    def either(self) -> Node:
        parts = [self.all()]
        while self.take("OR"):
            parts.append(self.all())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def all(self) -> Node:
        parts = [self.one()]
        while self.take("AND") or self.peek()[0] in ("word", "phrase") or self.next_is("NOT", "("):
            parts.append(self.one())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def one(self) -> Node:
        kind, text, place = self.peek()
        self.depth += 1
        if self.depth > DEEPEST:
            raise QueryError(self.query, place, f"more than {DEEPEST} parentheses or NOTs within each other; simplify.")
        if self.take("NOT"):
            node: Node = Not(self.one())
        elif self.take("("):
            node = self.either()
            if not self.take(")"):
                _, found, here = self.peek()
                raise QueryError(self.query, here, f"expected ')' for the '(' at position {place}, found {found!r}.")
        elif kind in ("word", "phrase"):
            self.at += 1
            node = Term(text, self.least(), place)
        else:
            raise QueryError(self.query, place, f"expected a concept, NOT or '(', found {text!r}.")
        self.depth -= 1
        return node

    def least(self) -> float:
        kind, text, place = self.peek()
        if kind != "least":
            return 0.0
        self.at += 1
        try:
            value = float(text[1:])
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise QueryError(self.query, place, f"expected a weight >= 0 such as ':0.05', found {text!r}.")
        return value
