"""Dictionaries: one file a family, all with encode, decode, atoms and save."""

from vlsae.dictionaries.base import DICTIONARIES, Codes, Dictionary
from vlsae.dictionaries.checkpoint import load_dictionary, save_dictionary

__all__ = ["DICTIONARIES", "Codes", "Dictionary", "load_dictionary", "save_dictionary"]
