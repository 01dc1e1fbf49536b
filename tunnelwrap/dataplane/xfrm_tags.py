"""What marks the SAs and policies of an instance: the high half of their request IDs."""

import logging
import os
from typing import Final
from zlib import crc32

from tunnelwrap.dataplane.netlink import XfrmSocket
from tunnelwrap.dataplane.xfrm_values import KernelPolicy
from tunnelwrap.errors import DataPlaneError

TAG_SHIFT: Final = 16
_FIRST_TAG: Final = 0x7400
_TAGS: Final = 0x0400
_MOST_REQUEST_IDS: Final = 0xFFFF

_log = logging.getLogger(__name__)


class RequestIds:
    """Numbers that tie SAs to policies: one for all of a kind, and one for each trap.

    Each run begins elsewhere: a call that a killed one did not answer silences those that follow it
    under its number, for as long as the kernel keeps it.
    """

    __slots__ = ("_next", "_tag", "_taken")

    def __init__(self, tag: int) -> None:
        self._tag = tag
        self._next = int.from_bytes(os.urandom(2))
        self._taken: dict[object, tuple[int, int]] = {}  # number and how many have it

    def take(self, kind: object) -> int:
        """The number of a kind of Child SA."""
        number, users = self._taken.get(kind) or (self._fresh(), 0)
        self._taken[kind] = number, users + 1
        return self._tag << TAG_SHIFT | number

    def give_back(self, kind: object) -> None:
        """One Child SA of that kind is gone."""
        number, users = self._taken.pop(kind)
        if users > 1:
            self._taken[kind] = number, users - 1

    def _fresh(self) -> int:
        if len(self._taken) >= _MOST_REQUEST_IDS:
            raise DataPlaneError(f"more than {_MOST_REQUEST_IDS} Child SAs in the kernel")
        used = {number for number, _ in self._taken.values()}
        while True:
            self._next = self._next % _MOST_REQUEST_IDS + 1
            if self._next not in used:
                return self._next


def tag_of(instance: str) -> int:
    """What marks the SAs and policies of an instance."""
    return _FIRST_TAG + crc32(instance.encode()) % _TAGS


def remove_left_behind(xfrm: XfrmSocket, tag: int) -> None:
    """Remove what a killed run of the same instance has left, and nothing else."""
    policies = xfrm.delete_policies(lambda each: is_tagged(each, tag))
    sas = xfrm.delete_sas(lambda each: each.reqid >> TAG_SHIFT == tag)
    if policies or sas:
        _log.info("removed what a former run left: %d SAs and %d policies", sas, policies)


def is_tagged(policy: KernelPolicy, tag: int) -> bool:
    """Whether a policy is of the instance with that tag."""
    return any(template.reqid >> TAG_SHIFT == tag for template in policy.templates)
