"""Every kind of caption file, whole and damaged."""

import csv
import gzip
import io
import json
import logging
import tarfile
import tracemalloc

import pytest

from vlsae.splice.captions import Caption, caption_files, iter_captions, nsfw_verdict

TEXTS = ["a red dog", 'an owl, with a "hat"', "ein Käuzchen 犬", "two\nlines"]
ROWS = [{"url": f"u{i}", "TEXT": text, "NSFW": "UNLIKELY" if i % 2 else "NSFW"} for i, text in enumerate(TEXTS)]
EXPECTED = [Caption(row["TEXT"], row["NSFW"]) for row in ROWS]


def _csv(delimiter=","):
    file = io.StringIO()
    writer = csv.DictWriter(file, ROWS[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return file.getvalue().encode()


def _json_lines():
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def _tar(members, compress=False):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz" if compress else "w") as tar:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return file.getvalue()


def _members():
    for i, row in enumerate(ROWS):
        yield f"./{i:05}.jpg", bytes(3000)
        yield f"./{i:05}.json", json.dumps({"caption": row["TEXT"], "NSFW": row["NSFW"], "sha256": "…"}).encode()
        yield f"./{i:05}.txt", row["TEXT"].encode()


def _read(tmp_path, name, content, **settings):
    (tmp_path / name).write_bytes(content)
    return list(iter_captions(tmp_path / name, **settings))


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(("name", "content"), [("a.csv", _csv()), ("a.tsv", _csv("\t")), ("a.jsonl", _json_lines())])
def test_tables_and_json_lines(tmp_path, name, content, compress):
    if compress:
        name, content = f"{name}.gz", gzip.compress(content)
    assert _read(tmp_path, name, content) == EXPECTED
    assert _read(tmp_path, name, content, column="TEXT") == EXPECTED
    assert [c.text for c in _read(tmp_path, name, content, column="url")] == ["u0", "u1", "u2", "u3"]


@pytest.mark.parametrize("compress", [False, True])
def test_text_files(tmp_path, compress):
    content = "\ufeffa red dog\r\n\n  \nein Käuzchen\nlast".encode()
    name = "a.txt.gz" if compress else "a.txt"
    found = _read(tmp_path, name, gzip.compress(content) if compress else content)
    assert found == [Caption("a red dog"), Caption("ein Käuzchen"), Caption("last")]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
def test_shards_give_one_caption_a_sample(tmp_path, name):
    assert _read(tmp_path, name, _tar(_members(), compress=name != "a.tar")) == EXPECTED


def test_shards_with_one_kind_of_member(tmp_path):
    texts = [(n, c) for n, c in _members() if n.endswith("txt")]
    assert [c.text for c in _read(tmp_path, "a.tar", _tar(texts))] == TEXTS
    objects = [(n, c) for n, c in _members() if n.endswith("json")]
    assert _read(tmp_path, "b.tar", _tar(objects)) == EXPECTED
    assert _read(tmp_path, "b.tar", _tar(objects), column="sha256")[0].text == "…"
    with pytest.raises(ValueError, match=r"columns caption, NSFW, sha256, not 'words'"):
        _read(tmp_path, "b.tar", _tar(objects), column="words")


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.Table.from_pylist([*ROWS, {"TEXT": None}]), tmp_path / "a.parquet")
    assert list(iter_captions(tmp_path / "a.parquet")) == EXPECTED
    with pytest.raises(ValueError, match="columns url, TEXT, NSFW"):
        list(iter_captions(tmp_path / "a.parquet", column="words"))


def test_cut_parquet_keeps_the_other_files(tmp_path, caplog):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    (tmp_path / "b.txt").write_text("a dog\n")
    assert list(iter_captions(tmp_path)) == [Caption("a dog")]
    assert "a.parquet" in caplog.text


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install 'vlsae\[parquet\]'"):
        _read(tmp_path, "a.parquet", b"")


def test_folders_in_sorted_order_and_no_shard_twice(tmp_path):
    for name in ("b/2.txt", "b/1.txt", "a.txt", "c.md", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{name}\n")
    (tmp_path / "00000.tar").write_bytes(_tar(_members()))
    (tmp_path / "00000.parquet").write_bytes(b"")  # img2dataset's table of the same captions
    names = [str(f.relative_to(tmp_path)) for f in caption_files(tmp_path)]
    assert names == ["00000.tar", "a.txt", "b/1.txt", "b/2.txt"]
    assert caption_files([tmp_path / "a.txt", tmp_path])[0] == tmp_path / "a.txt"
    assert len(caption_files([tmp_path / "a.txt", tmp_path])) == 4


@pytest.mark.parametrize(
    ("name", "content", "kept"),
    [
        ("a.txt", b"one\n\xff\xfe\nthree\n", ["one", "three"]),
        ("a.csv", b"text\none\n\xff\nthree\n", ["one", "three"]),
        ("a.csv", b"id,text\n1,one\n2\n3,three\n", ["one", "three"]),
        ("a.jsonl", b'{"text": "one"}\n{"text": \n"three"\n', ["one", "three"]),
        ("a.jsonl", b'{"text": "one"}\n{"text": 5}\n{"text": "three", "x": 1}\n', ["one", "three"]),
        ("a.tar", _tar([("1.txt", b"one"), ("2.txt", b"\xff"), ("3.txt", b"three")]), ["one", "three"]),
        ("a.tar", _tar([("1.json", b'{"text": "one"}'), ("2.json", b"{"), ("3.txt", b"three")]), ["one", "three"]),
        ("a.tar", _tar([("1.json", b'{"text": "one"}'), ("2.json", b'{"x": 1}'), ("3.txt", b"three")]), ["one", "three"]),
    ],
)  # fmt: skip
def test_damaged_rows_are_counted_and_skipped(tmp_path, caplog, name, content, kept):
    with caplog.at_level(logging.WARNING, "vlsae"):
        assert [c.text for c in _read(tmp_path, name, content)] == kept
    assert caplog.text.count("1 damaged rows were skipped") == 1


@pytest.mark.parametrize("where", [0, 200, 700])  # in bytes from half of it, which in a .tar is between two members
@pytest.mark.parametrize("name", ["a.txt.gz", "a.tar", "a.tar.gz"])
def test_cut_files_are_named_and_read_as_far_as_they_go(tmp_path, caplog, name, where):
    if name == "a.txt.gz":
        content = gzip.compress("".join(f"caption {i * 7919 % 9973}\n" for i in range(1200)).encode())
    else:
        members = [(f"{i:05}.txt", f"caption {i * 7919 % 9973}".encode()) for i in range(1200)]
        content = _tar(members, compress=name != "a.tar")
    found = _read(tmp_path, name, content[: len(content) // 2 + where])
    assert 100 < len(found) < 1100
    assert [c.text for c in found[:-1]] == [f"caption {i * 7919 % 9973}" for i in range(len(found) - 1)]
    assert f"Cut off or damaged: {name}" in caplog.text


def test_memory_is_constant_also_for_one_endless_line(tmp_path, caplog):
    (tmp_path / "a.txt").write_bytes(
        b"first\n" + b"x" * (8 << 20) + b"\nlast\n" + b"a long caption of a red dog in the snow\n" * 100_000
    )
    tracemalloc.start()
    found = iter_captions(tmp_path)
    assert [next(found).text, next(found).text] == ["first", "last"]
    n = sum(1 for _ in found)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == 100_000
    assert peak < 7 << 20  # a few blocks of 1 MiB and the lines of one as objects, of 12 MB in the file
    assert "1 damaged rows" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "not one caption"),
        ("a.csv", b"", "not one caption"),
        ("a.csv", b"caption\n", "not one caption"),
        ("a.tar", b"", "not one caption"),
        ("a.md", b"a dog", "no kind of caption file"),
        ("a.parquet.gz", b"", "no kind of caption file"),
        ("a.csv", b"id,words\n1,a dog\n", "columns id, words, not any of caption, text"),
        ("a.jsonl", b'{"id": 1}\n', "name the captions' with column="),
        ("a.txt", "a dog".encode("utf-16"), "save it as UTF-8"),
    ],
)
def test_useless_input_is_explained(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        _read(tmp_path, name, content)


def test_missing_paths_and_empty_folders_fail_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match="no caption file or folder"):
        iter_captions(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="There are no caption files"):
        iter_captions(tmp_path)


@pytest.mark.parametrize(
    ("verdict", "default", "strict"),
    [("UNLIKELY", 0, 0), ("UNSURE", 0, 1), ("NSFW", 1, 1), ("nsfw", 1, 1), ("0.05", 0, 0), ("0.3", 0, 1),
     ("0.5", 1, 1), ("1", 1, 1), ("nan", 0, 0), ("", 0, 0), ("True", 1, 1), ("False", 0, 0), ("odd", 0, 1)],
)  # fmt: skip
def test_verdicts_by_tier(verdict, default, strict):
    found = [nsfw_verdict(verdict, tier) for tier in ("none", "default", "strict")]
    assert found == [False, bool(default), bool(strict)]


def test_unknown_tier():
    with pytest.raises(ValueError, match="strict, default or none"):
        nsfw_verdict("NSFW", "lax")
