"""A kernel without ESP in TCP is told from one with it, for which see tests/kernel/whole."""

import os

import pytest

from tests.kit.kernel import IN_GUEST, WHOLE
from tests.unit.dataplane.samples import suite_of
from tunnelwrap.dataplane.xfrm_espintcp import why_no_espintcp

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.environ.get(IN_GUEST) == WHOLE, reason="this kernel has it"),
]


def test_it_is_said_why_and_what_helps() -> None:
    assert why_no_espintcp([suite_of("aes256gcm16")]) == (
        "this kernel has no espintcp (no such file or directory): run one that is built with"
        " INET_ESPINTCP and INET6_ESPINTCP"
    )
