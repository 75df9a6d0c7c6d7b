"""bench.py's real command line: its figures are there; no test asserts a time."""
import json

import pytest

from commands import run, write_file
from drill import make_audio
from recordings import read_audio
from talk import Talker
from test_audiobench import make_run


@pytest.mark.slow
def test_figures_are_there(tmp_path):
    """Broken: a figure lacks, or word times are compared wrongly."""
    clip = write_file(tmp_path / "a.wav", make_audio(4, 2))
    ckpt = make_run(tmp_path / "run", ctc=260)
    words = next(Talker(ckpt).transcripts(read_audio(str(clip)))).words
    lines = [f"a 1 {word.start_s + 0.05} {word.end_s - word.start_s} {word.text.upper()}\n"
             for word in words]
    write_file(tmp_path / "a.ctm", "".join(lines))
    said = run("bench.py", "--device=cpu", f"--audio={clip}", f"--ckpt={ckpt}")
    result = json.loads(said.splitlines()[-1])
    assert result.pop("dtype") and len(result) == 9 and min(result.values()) > 0, result
    assert abs(result["words.start_ms"] - 50) < 1 and abs(result["words.end_ms"] - 50) < 1
