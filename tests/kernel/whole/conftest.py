"""These tests need what the kernel built for tests has: ESP in TCP, netdevsim."""

from pathlib import Path

import pytest

from tests.kernel.kinds import check_kernel, ignored

HERE = Path(__file__).parent

collect_ignore_glob = ignored(HERE)


def pytest_configure(config: pytest.Config) -> None:
    check_kernel(config, HERE)
