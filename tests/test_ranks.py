"""torchrun's real command line: several ranks train as one process, and stop with one line."""
import os
import shutil
import socket
import subprocess
import sys

import pytest

from checkpoints import checkpoint_steps
from test_train import BASE, BOTH, ROOT, base, log_of, world  # world: a fixture

SCRIPT = "\nimport runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
BEFORE = """\
import os, run, torch, trainer

def join_ranks(*args, join=run.join_ranks):
    ranks = join(*args)
    torch.manual_seed(ranks[0])
    return ranks

def update(self, step, *args, update=trainer.Trainer.update):
    if (step, self.rank) == (3, 1):
        os.kill(os.getpid(), 9)
    update(self, step, *args)

run.join_ranks, trainer.Trainer.update = join_ranks, update
"""  # each rank draws other weights; rank 1 dies in step 4


def torchrun(world, folder, *args, launch, before=""):
    """Start train_base.py as torchrun does, in a folder, after lines of Python -> process."""
    command = [sys.executable, "-m", "torch.distributed.run", *launch, "--no-python",
               sys.executable, "-c", before + SCRIPT, f"{ROOT}/train_base.py",
               f"--data_dir={world}/text", f"--chats={world}/chats.jsonl", *BASE, *BOTH, *args]
    return subprocess.Popen(command, cwd=folder, env=os.environ | {"PYTHONPATH": ROOT}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
@pytest.mark.case("B39")
def test_a_run_goes_on_with_any_ranks(world, tmp_path):
    """Broken: ranks train unlike weights, wait for a killed one, must be as many as before, or save
    a part (zero1)."""
    base(world, tmp_path / "one", "--max_steps=6")
    process = torchrun(world, tmp_path, "--max_steps=6", "--save_every=1", "--out_dir=run",
                       "--zero1=True", launch=["--standalone", "--nproc_per_node=2"],
                       before=BEFORE)
    process.communicate()  # until no rank is left
    last = checkpoint_steps(tmp_path / "run")[-1]
    assert process.returncode and last in (2, 3)
    base(world, tmp_path / "run", "--max_steps=4", "--zero1=True", n_ranks=2)
    out = base(world, tmp_path / "run", "--max_steps=5", n_ranks=3)  # one has no microbatch
    assert "3 ranks; starting at step 4" in out
    base(world, tmp_path / "run", "--max_steps=6")
    one, many = ([row for row in log_of(tmp_path / part) if "lr" in row] for part in ("one", "run"))
    assert len(one) == len(many) == 6
    for row, expected in zip(many, one):
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.slow
@pytest.mark.case("B39")
@pytest.mark.parametrize("own", ["run", "text"])
def test_nodes_with_other_folders_stop_in_one_line(world, tmp_path, own):
    """Broken: nodes mix a fresh model with a resumed one or train on other data, or one waits."""
    with socket.create_server(("localhost", 0)) as free:
        launch = ["--nnodes=2", "--nproc_per_node=1", "--local_addr=localhost",
                  "--rdzv_backend=c10d", f"--rdzv_endpoint=localhost:{free.getsockname()[1]}"]
    nodes, where = [], ["--out_dir=run"]
    if own == "text":
        where = ["--data_dir=text", f"--out_dir={tmp_path}/x"]
    for n in range(2):
        folder = tmp_path / str(n)
        shutil.copytree(world / "text", folder / "text")
        with open(folder / "text" / "train.txt", "a") as f:
            f.write("a cat sees a dog\n" * n)
        nodes.append(torchrun(world, folder, "--max_steps=2", *where, launch=launch))
    said = "".join(node.communicate()[0] for node in nodes)
    lines = [line for line in said.splitlines() if line.startswith("train_base.py: ")]
    assert all(node.returncode for node in nodes) and len(lines) == 1, said[-3000:]
    assert f"the ranks differ in {'out_dir' if own == 'run' else 'text'}: " in lines[0]
