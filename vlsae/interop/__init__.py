"""Readers and writers of other projects' dictionaries, without importing those projects.

`load.py` finds the dialect of a file and opens it; `source.py` is that file with what lies beside it; `answers.py` is what a
user adds to a file that does not say everything; `dialects/` has one file a dialect; `convert.py` writes and compares;
`doctor.py` holds a dictionary against a model, with the parts in `examination/`. `DIALECTS.md` is for users.
"""

from vlsae.interop.load import load_dictionary

__all__ = ["load_dictionary"]
