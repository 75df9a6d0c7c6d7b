"""files.py: odd encodings, folders with a system's own files."""
import json
import os

import pytest

from files import find_files, own_file, read_jsonl, write_json, write_jsonl


def write(path, data):
    """Write str (UTF-8) or bytes, folders made; returns the path as a user gives it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


@pytest.mark.case("B15", "B20")
@pytest.mark.parametrize("data, said", [
    ("\u4f60".encode("utf-16"), "x.jsonl:1: this is UTF-16 or no text: save it as UTF-8"),
    ("a\nb\n".encode("utf-16-be"), "x.jsonl:1: this is UTF-16"),
    (b'{"a": 1}\n{"a": "caf\xe9"}\n', "x.jsonl:2: byte 0xe9 is no UTF-8 .Latin-1.*UTF-8"),
    (b'{"a": 1}\n\n[1]\n', "x.jsonl:3: no JSON object, but .1.; each line .* with \"a\""),
    (b'{"a": 1}\n{\n "a": 1}\n', "x.jsonl:2: no JSON object on one line"),
    (b"[" * 99_999, "x.jsonl:1: no JSON object"),
    (b'{"a": 1}\n{"b": 1, "c": 2}\n', 'x.jsonl:2: "a" is missing among b, c; each line'),
    (b'{"a": 1}\n{"a": "one"}\n', 'x.jsonl:2: "a" is "one"')])
def test_bad_rows_are_named(tmp_path, data, said):
    """Broken: another encoding or a bad row is a message that names neither file nor line."""
    with pytest.raises(ValueError, match=said):
        list(read_jsonl(write(tmp_path / "x.jsonl", data), a=int))


def test_what_is_written_is_json(tmp_path):
    """Broken: NaN, or half a surrogate pair, of a row spoils the file that it is written to."""
    path = write(tmp_path / "a.jsonl", '{"snr": NaN, "gain": -Infinity, "name": "\\ud83d"}\n')
    (row,) = (row for _, row in read_jsonl(path))
    write_json(tmp_path / "b.json", row)
    write_jsonl(tmp_path / "b.jsonl", [row])
    expected = {"snr": None, "gain": None, "name": "?"}
    assert json.loads((tmp_path / "b.json").read_text()) == expected
    assert json.loads((tmp_path / "b.jsonl").read_text()) == row
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "b.json", "b.jsonl"]


@pytest.mark.case("B18", "B19")
def test_folders(tmp_path):
    """Broken: what a Mac, Windows or a notebook leaves in a folder is read, upper-case endings or
    links are not, or links that go round hang."""
    for name in ("b.txt", "NOTES.TXT", "._b.txt", ".ipynb_checkpoints/b.txt", "__MACOSX/b.txt",
                 "deep/er/c.Txt", "all.txt/part-0.txt", "all.txt/.part-0.txt.crc", "d.pdf"):
        write(tmp_path / "in" / name, "x")
    (tmp_path / "in" / "deep" / "round").symlink_to(tmp_path / "in", target_is_directory=True)
    (tmp_path / "elsewhere").symlink_to(tmp_path / "in", target_is_directory=True)
    paths = find_files(tmp_path / "elsewhere", (".txt", ".md"))
    found = [os.path.relpath(path, tmp_path / "elsewhere") for path in paths]
    assert found == ["NOTES.TXT", "all.txt/part-0.txt", "b.txt", "deep/er/c.Txt"]


@pytest.mark.case("B36")
def test_own_texts_are_found_from_anywhere(tmp_path, monkeypatch):
    """Broken: grammar.txt and the like are found in one folder alone, or a user's own is not."""
    monkeypatch.chdir(tmp_path)
    assert os.path.isfile(own_file("assets/grammar.txt"))
    write(tmp_path / "assets/spoken.txt", "mine")
    assert own_file("assets/spoken.txt") == "assets/spoken.txt"
    assert own_file(f"{tmp_path}/none.txt") == f"{tmp_path}/none.txt"
