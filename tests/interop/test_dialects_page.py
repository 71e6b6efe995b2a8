"""The page for users names every dialect, and says truly which can be written."""

from pathlib import Path

import vlsae
from vlsae.interop.convert import writers
from vlsae.interop.dialect import DIALECTS

PAGE = Path(vlsae.__file__).parent / "interop" / "DIALECTS.md"


def table():
    """Cells of every row, by the dialect in the first; a dialect may have several rows."""
    lines = PAGE.read_text(encoding="utf-8").split("## Dialects")[1].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return rows[0], [row for row in rows[2:]]


def test_every_dialect_has_a_row():
    head, rows = table()
    assert head[0] == "dialect" and all(len(row) == len(head) for row in rows)
    assert {row[0] for row in rows} == set(DIALECTS)


def test_the_page_says_what_can_be_written():
    head, rows = table()
    column = head.index("write")
    assert {row[0] for row in rows if row[column] != "no"} == set(writers())
