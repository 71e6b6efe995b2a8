"""Files that are the old or the new one."""

import os

from vlsae.atomic import replacing


def test_bytes_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    """A rename that outlives its bytes would leave an empty file after a power cut."""
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr("os.fsync", lambda fd: done.append(("fsync", os.fstat(fd).st_size)) or fsync(fd))
    monkeypatch.setattr("os.replace", lambda *paths: done.append("replace") or replace(*paths))
    with replacing(tmp_path / "a") as partial:
        partial.write_bytes(b"12345")
    assert done == [("fsync", 5), "replace"]
    assert (tmp_path / "a").read_bytes() == b"12345"
