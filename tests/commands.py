"""The scripts' real command lines, in this process or in one of their own."""
import contextlib
import http.server
import io
import json
import os
import runpy
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run_here(script, *args):
    """Run a script in this process, which saves importing torch -> (exit code, stdout, stderr)."""
    import torch
    code, out, err = 0, io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(sys, "argv", [script, *map(str, args)])
        patch.setattr(sys, "stderr", err)
        patch.chdir(ROOT)
        try:
            runpy.run_path(f"{ROOT}/{script}", run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
    torch.use_deterministic_algorithms(False)
    return code, out.getvalue(), err.getvalue()


def refused(script, *args):
    """Run a script that has to refuse -> the one line that it says."""
    code, _, err = run_here(script, *args)
    assert code == 2 and err.startswith(f"{script}: ") and err.count("\n") == 1, (args, err)
    return err


def raises(pattern, call, *args, error=ValueError, **more):
    """Call what has to raise an error -> what it says, one line with the pattern in it."""
    with pytest.raises(error, match=pattern) as e:
        call(*args, **more)
    assert "\n" not in str(e.value)
    return str(e.value)


def run(script, *args, ok=True, **env):
    """Run a script -> what it prints, or the only line of error."""
    done = subprocess.run([sys.executable, ROOT / script, *map(str, args)], cwd=ROOT, text=True,
                          env={**os.environ, **env}, capture_output=True, timeout=900)
    assert done.returncode == (0 if ok else 2), done.stderr
    said = [line for line in done.stderr.splitlines() if "\r" not in line]  # no progress bars
    assert ok or len(said) == 1 and said[0].startswith(script), done.stderr
    return done.stdout if ok else said[0]


def write_file(path, data=b""):
    """Write bytes or text and make the folder it lies in; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def read_rows(path):
    """Return the rows of a .jsonl."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def write_rows(path, rows):
    """Write a .jsonl; returns its path as str."""
    return str(write_file(Path(path), "".join(json.dumps(row) + "\n" for row in rows)))


def web_server(handler):
    """Answer requests with a handler of http.server, until pytest ends -> address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"
