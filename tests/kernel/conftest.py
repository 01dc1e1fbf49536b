"""These tests run under a kernel that has ESP, and nowhere else."""

import os
from pathlib import Path

import pytest

from tests.kit.kernel import IN_GUEST

HERE = Path(__file__).parent
COMMAND = "python -m tests.kit.kernel -- pytest tests/kernel"

collect_ignore_glob = [] if IN_GUEST in os.environ else ["*"]


def pytest_configure(config: pytest.Config) -> None:
    asked = (Path(argument.split("::")[0]).resolve() for argument in config.args)
    if IN_GUEST not in os.environ and any(path.is_relative_to(HERE) for path in asked):
        raise pytest.UsageError(f"these tests need a kernel that has ESP: {COMMAND}")
