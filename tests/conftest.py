"""Tests run in fp32 whatever the machine, on one thread: at toy size two wait for each other; before torch is there."""
import os

os.environ["NANOCHAT_DTYPE"] = "float32"
os.environ.setdefault("OMP_NUM_THREADS", "1")
