"""A table of how the tests of each of 40 kinds of faulty input ended (cases.txt: of bug reports).

    bash test.sh --cases             # after all tests
    bash test.sh -m case --cases     # these tests alone

A kind is right when it has a test and each of its tests passed.
"""
from collections import defaultdict
from pathlib import Path

KINDS = dict(line.split(" ", 1) for line in
             Path(__file__).with_suffix(".txt").read_text().splitlines())


class Table:
    """A pytest plugin that prints the table."""

    def __init__(self):
        self.outcomes = defaultdict(list)

    def pytest_collection_modifyitems(self, items):
        for item in items:
            kinds = [kind for mark in item.iter_markers("case") for kind in mark.args]
            item.user_properties.append(("kinds", kinds))  # reaches pytest-xdist's reports too

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            for kind in dict(report.user_properties).get("kinds", ()):
                self.outcomes[kind].append(report.outcome)

    def pytest_terminal_summary(self, terminalreporter):
        for kind, what in KINDS.items():
            seen = self.outcomes[kind]
            is_right = "passed" in seen and "failed" not in seen
            terminalreporter.write_line(f"{kind}  {'right' if is_right else 'WRONG'}  "
                                        f"{seen.count('passed')} of {len(seen)} tests  {what}")

    def pytest_sessionfinish(self, session):
        if set(KINDS) - set(self.outcomes) and not session.exitstatus:
            session.exitstatus = 1  # a kind without a test is not right
