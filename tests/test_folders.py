"""folders.py: whose folder a prepare script may empty."""
import json
import sys

import pytest

from folders import make_folder


def test_only_its_own_folder_is_emptied(tmp_path, monkeypatch, capsys):
    """Broken: --out_dir= of another script, or of somebody else, costs what lies there."""
    def make(text):
        (tmp_path / "a.txt").write_text(text)
        return ["a.txt"], {"n": 1}

    def run(text, script="prepare_text.py"):
        monkeypatch.setattr(sys, "argv", [script])
        make_folder(tmp_path, {"text": text}, dict, lambda: make(text), "a.txt")
        return capsys.readouterr().out

    assert "n 1" in run("one") and "is up to date" in run("one") and "n 1" in run("two")
    for meta in (None, {}, [], {"settings": {}, "script": "prepare_chat.py"}, {"mine": 1}):
        path = tmp_path / "meta.json"
        path.unlink() if meta is None else path.write_text(json.dumps(meta))
        with pytest.raises(SystemExit):
            run("three")
        assert "was not made by this script" in capsys.readouterr().err
        assert (tmp_path / "a.txt").read_text() == "two"
