"""Tests run in fp32 whatever the machine: set before any test imports model.py."""
import os

os.environ["NANOCHAT_DTYPE"] = "float32"
