"""Tests that need a kernel of a certain kind are in a folder of that name, and run nowhere else."""

import os
from pathlib import Path

import pytest

from tests.kit.kernel import IN_GUEST


def ignored(folder: Path) -> list[str]:
    """What is not collected of a folder: all of it under another kernel."""
    return [] if _is_under(folder.name) else ["*"]


def check_kernel(config: pytest.Config, folder: Path) -> None:
    """See that nobody asks for the tests of a folder under another kernel.

    Raises:
        UsageError: somebody does; with the command that would do.
    """
    asked = (Path(argument.split("::")[0]).resolve() for argument in config.args)
    if not _is_under(folder.name) and any(path.is_relative_to(folder) for path in asked):
        command = f"python -m tests.kit.kernel --kernel {folder.name} -- pytest {folder}"
        raise pytest.UsageError(f"these tests need another kernel: {command}")


def _is_under(kind: str) -> bool:
    return os.environ.get(IN_GUEST) == kind
