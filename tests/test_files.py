"""files.py: odd encodings, bad rows."""
import json
import os

import pytest

from commands import raises
from files import read_jsonl, write_json, write_jsonl


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
    (tmp_path / "x.jsonl").write_bytes(data)
    raises(said, list, read_jsonl(tmp_path / "x.jsonl", a=int))


def test_what_is_written_is_json(tmp_path, monkeypatch):
    """Broken: NaN or half a surrogate pair of a row spoils a file, or a kill leaves half of one."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"snr": NaN, "gain": -Infinity, "name": "\\ud83d"}\n')
    (row,) = (row for _, row in read_jsonl(path))
    write_json(tmp_path / "b.json", row)
    write_jsonl(tmp_path / "b.jsonl", [row])
    expected = {"snr": None, "gain": None, "name": "?"}
    assert json.loads((tmp_path / "b.json").read_text()) == expected
    assert json.loads((tmp_path / "b.jsonl").read_text()) == row
    monkeypatch.setattr(os, "replace", lambda *names: 1 / 0)  # killed before the rename
    with pytest.raises(ZeroDivisionError):
        write_json(tmp_path / "b.json", {})
    assert json.loads((tmp_path / "b.json").read_text()) == expected
