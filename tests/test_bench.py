"""bench.py's real command line at toy size: its figures are there; how fast is nobody's business here."""
import json
import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run(*args):
    return subprocess.run([sys.executable, "bench.py", "--quick=True", "--device=cpu", *args], cwd=ROOT,
                          capture_output=True, text=True)


@pytest.mark.slow
def test_figures_are_there():
    """Broken: a part dies, hangs in a forked process, or the JSON line lacks a figure or its limit."""
    done = run("--encoder_size=tiny", "--clip_s=0.5", "--batch_tokens=500")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert list(result) == ["machine", "encoder", "align", "train", "prefill", "decode", "serve"]
    assert result["align"]["padding"] < 0.05
    for part, names in (("machine", ("matmul_fp32_gflops", "matmul_bf16_gflops", "copy_gb_s")),
                        ("encoder", ("x_naive_0.5s", "clips_s", "naive_clips_s", "x_real_time", "share_of_matmul")),
                        ("align", ("tok_s", "naive_tok_s", "x_naive", "share_of_matmul")),
                        ("prefill", ("tok_s", "naive_tok_s", "x_naive")),
                        ("serve", ("first_token_median_ms", "first_token_p95_8_clients_ms", "x_naive_64"))):
        assert all(result[part][name] > 0 for name in names), result[part]
    assert all(result["train"]["d4_128"][name] > 0 for name in ("gflops", "tok_s", "first_step_s", "share_of_matmul"))
    assert all(result["decode"][f"batch_{n}"]["share_of_bandwidth"] > 0 for n in (1, 8, 32))
    assert "| encoder  | x_naive_0.5s" in done.stdout and "| decode   | batch_8.x_naive" in done.stdout


def test_wrong_settings():
    """Broken: a mistake costs minutes before it is seen, or ends in a traceback."""
    for arg, word in (("--only=decoder", "prefill, decode, serve"), ("--encoder_size=huge", "large-v3"),
                      ("--clip_s=0", "clip_s"), ("--device=tpu", "device=tpu")):
        done = run(arg)
        assert done.returncode == 2 and word in done.stderr and done.stderr.count("\n") == 1, done.stderr
