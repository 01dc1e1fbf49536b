"""These tests need the kernel of the kind ``interface``: Debian's with xfrm interfaces."""

import os
from pathlib import Path

import pytest

from tests.kit.kernel import IN_GUEST, INTERFACE

COMMAND = "python -m tests.kit.kernel --kernel interface -- pytest tests/kernel/interface"

IS_HERE = os.environ.get(IN_GUEST) == INTERFACE
collect_ignore_glob = [] if IS_HERE else ["*"]


def pytest_configure(config: pytest.Config) -> None:
    here = Path(__file__).parent
    asked = (Path(argument.split("::")[0]).resolve() for argument in config.args)
    if not IS_HERE and any(path.is_relative_to(here) for path in asked):
        raise pytest.UsageError(f"these tests need another kernel: {COMMAND}")
