import pytest

from vlsae.dictionaries.base import DICTIONARIES
from vlsae.registry import Registry


def test_finds_what_the_folder_registers_and_names_it_otherwise():
    assert {"relu", "topk", "projection"} <= set(DICTIONARIES)
    with pytest.raises(ValueError, match="Unknown dictionary 'nope'; known are .*topk"):
        DICTIONARIES.get("nope")


def test_a_name_is_taken_once():
    registry = Registry("part", "vlsae.metrics")
    registry.register("a")(int)
    with pytest.raises(ValueError, match="registered already"):
        registry.register("a")(float)
