"""Tests run in fp32 on every machine, and on one thread: at toy size two wait for each other."""
import os

os.environ["NANOCHAT_DTYPE"] = "float32"
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser):
    parser.addoption("--cases", action="store_true", help="print the table of tests/cases.py")


def pytest_configure(config):
    if config.getoption("--cases"):
        from cases import Table
        config.pluginmanager.register(Table())
