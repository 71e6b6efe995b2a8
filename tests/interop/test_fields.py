"""Fields that no known version has are a question, in a message that no file can make long."""

import pytest

from vlsae.interop.answers import Answers
from vlsae.interop.dialect import DialectError
from vlsae.interop.fields import describe, ignored_note, other_fields

KNOWN = {"k", "d_in"}


def test_known_and_unset_fields_raise_no_question():
    assert other_fields({"k": 3, "d_in": 8, "new": None}, KNOWN, "a project 1.0") == {}
    assert ignored_note({"k": 3, "new": None}, KNOWN) == []


@pytest.mark.parametrize("value", [True, False, 0, "", [], {}, "relu"])
def test_a_field_that_is_set_raises_it_even_to_false(value):
    """`rectify=False` changes codes as much as `signed=True` does."""
    facts = other_fields({"k": 3, "rectify": value}, KNOWN, "a project 1.0")
    with pytest.raises(DialectError, match=r'other_fields=...: what fields that a project 1.0 .*\(rectify=.*"ignored"'):
        Answers({}, "sae.pt").settle(**facts)
    assert Answers({"other_fields": "ignored"}, "sae.pt").settle(**facts).other_fields == "ignored"
    with pytest.raises(DialectError, match="other_fields='kept' is no answer.*expected one of ignored"):
        Answers({"other_fields": "kept"}, "sae.pt").settle(**facts)
    assert "rectify=" in ignored_note({"rectify": value}, KNOWN)[0]


def test_no_file_makes_the_message_long():
    """Eight fields at most, of names and values that are cut: well below the length of a screen."""
    hostile = {f"{i}" + "n" * 10**6: "v\n" * 10**6 for i in range(1000)}
    fact = other_fields(hostile, KNOWN, "a project 1.0")["other_fields"]
    assert "and 992 more" in fact.question and len(fact.question) < 1000
    assert len(ignored_note(hostile, KNOWN)[0]) < 1000


def test_values_are_shown_in_one_line():
    assert describe("a\n  b\tc") == "a b c" and describe({"k": [1]}) == "{'k': [1]}"
