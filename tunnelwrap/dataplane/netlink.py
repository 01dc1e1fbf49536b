"""Asking the kernel's IPsec (XFRM), and hearing what happens to it, over netlink.

``XfrmSocket`` asks: each call is one request, answered before it returns (the kernel works in our
own system call, so nothing is gained by not waiting). ``XfrmMonitor`` hears: events of the groups
that were joined, in order, when its descriptor is readable. A socket belongs to the network
namespace of the thread that made it.

Owns: its socket and the number of its newest request.
"""

import errno
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from ctypes import addressof, create_string_buffer
from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple, Self

from tunnelwrap.dataplane.xfrm_messages import Bare, ErrorMessage, Msg, XfrmMessage, encoded
from tunnelwrap.dataplane.xfrm_reports import read_event, read_policy, read_sa, read_state
from tunnelwrap.dataplane.xfrm_requests import (
    flush_message,
    migrate_message,
    policy_id_message,
    policy_message,
    sa_id_message,
    sa_message,
    spi_message,
    state_message,
    state_request,
)
from tunnelwrap.dataplane.xfrm_values import (
    Direction,
    Encapsulation,
    Event,
    EventsLost,
    KernelPolicy,
    KernelSa,
    Mark,
    Migration,
    Proto,
    Replay,
    SaId,
    SaState,
    Usage,
)
from tunnelwrap.errors import KernelRefused

_REQUEST: Final = 0x01  # flags of linux/netlink.h
_ACK: Final = 0x04
_REPLACE: Final = 0x100
_DUMP: Final = 0x300
_ACK_HAS_ATTRIBUTES: Final = 0x200

_ERROR: Final = 2  # types of messages
_DONE: Final = 3

_SOL_NETLINK: Final = 270
_ADD_MEMBERSHIP: Final = 1
_CAP_ACK: Final = 10  # an error does not repeat the request, which may have keys in it
_EXT_ACK: Final = 11

_HEADER: Final = Struct("IHHII")
_NUMBER: Final = Struct("i")
_KERNEL: Final = 0  # its port
_SO_RCVBUFFORCE: Final = 33
_SO_ATTACH_FILTER: Final = 26
_STEP: Final = Struct("HBBI")  # struct sock_filter
_PROGRAM: Final = Struct("HP")  # struct sock_fprog
_LOAD_HALF: Final = 0x28  # of linux/bpf_common.h; it takes octets as a network does
_JUMP_IF: Final = 0x15
_RETURN: Final = 0x06
_KIND_OFFSET: Final = 4
_RECEIVE: Final = 1 << 16
_ANSWER_TIMEOUT_S: Final = 10.0
_EVENTS_BUFFER: Final = 1 << 20

_NOT_THERE: Final = frozenset({errno.ESRCH, errno.ENOENT})

_CURES: Final = {
    errno.EPERM: "the right CAP_NET_ADMIN is needed",
    errno.EEXIST: "the kernel has the same already, from another program or a run that was killed",
    errno.ESRCH: "it is not there: it expired, or another program deleted it",
    errno.ENOENT: "it is not there: it expired, or another program deleted it",
    errno.ENOSYS: "this kernel lacks an algorithm that is asked for",
    errno.EPROTONOSUPPORT: "this kernel lacks it: are its modules esp4, esp6, xfrm_user there?",
    errno.EOPNOTSUPP: "this kernel or the device cannot do it",
    errno.ENOPROTOOPT: "this kernel was built without it",
}


class Group(IntEnum):
    """What a monitor can hear of."""

    ACQUIRE = 1
    EXPIRE = 2
    SA = 3
    POLICY = 4
    STATE = 5  # XFRMNLGRP_AEVENTS
    MIGRATE = 7
    MAPPING = 8


class _Message(NamedTuple):
    """One netlink message: parts of its header, and the whole of it."""

    kind: int
    flags: int
    sequence: int
    octets: bytes


class XfrmSocket:
    """Asks the kernel for SAs and policies.

    Every call raises KernelRefused when the kernel refuses, with its errno and what it says.
    ``delete`` and ``find`` do not when there is nothing: they say so.
    """

    def __init__(self) -> None:
        """Open it; no right is needed for that.

        Raises:
            KernelRefused: this kernel has no XFRM.
        """
        self._socket = _open()
        self._socket.settimeout(_ANSWER_TIMEOUT_S)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it; what was installed stays."""
        self._socket.close()

    # SAs

    def add_sa(self, sa: KernelSa) -> None:
        """Add an SA; EEXIST if one with its id is there."""
        self._order(f"add {sa.id}", Msg.NEWSA, sa_message(sa))

    def update_sa(self, sa: KernelSa) -> None:
        """Fill in an SA whose SPI was allocated, or change limits and encapsulation of another.

        The addresses, keys and sequence numbers of an SA that is complete stay as they are.
        """
        self._order(f"update {sa.id}", Msg.UPDSA, sa_message(sa))

    def delete_sa(self, sa_id: SaId, mark: Mark | None = None) -> bool:
        """Delete an SA; whether it was there."""
        message = sa_id_message(sa_id, mark)
        return self._delete(f"delete {sa_id}", Msg.DELSA, message)

    def delete_sas(self, is_ours: Callable[[KernelSa], bool]) -> int:
        """Delete the SAs of which that is true; how many there were."""
        ours = [sa for sa in self.sas() if is_ours(sa)]
        return sum(self.delete_sa(sa.id, sa.mark) for sa in ours)

    def find_sa(self, sa_id: SaId, mark: Mark | None = None) -> KernelSa | None:
        """An SA as it is now, with its keys."""
        octets = self._find(f"read {sa_id}", Msg.GETSA, sa_id_message(sa_id, mark))
        return None if octets is None else read_sa(octets)

    def sas(self) -> list[KernelSa]:
        """All SAs of this namespace, also those of others."""
        return [*map(read_sa, self._dump("read all SAs", Msg.GETSA))]

    def find_state(self, sa_id: SaId, mark: Mark | None = None) -> SaState | None:
        """The sequence numbers and counters of an SA, without its keys."""
        octets = self._find(f"read {sa_id}", Msg.GETAE, state_request(sa_id, mark))
        return None if octets is None else read_state(octets)

    def set_state(
        self, sa_id: SaId, replay: Replay, usage: Usage | None = None, mark: Mark | None = None
    ) -> None:
        """Set sequence numbers, and counters if given; window and ESN must be those of the SA."""
        message = state_message(sa_id, mark, replay, usage)
        self._order(f"set the state of {sa_id}", Msg.NEWAE, message, _REPLACE)

    def allocate_spi(self, sa: KernelSa, low: int = 0x100, high: int = 0xFFFF_FFFF) -> int:
        """Reserve an inbound SPI from a range for this SA, whose own SPI is 0 so far.

        ``update_sa`` fills it in; the kernel forgets it if that does not happen in time
        (net.core.xfrm_acq_expires, 30 s). Algorithms are not looked at.
        """
        operation = f"allocate an SPI for {sa.id.proto.name} to {sa.id.destination}"
        return read_sa(self._ask(operation, Msg.ALLOCSPI, spi_message(sa, low, high))).id.spi

    def flush_sas(self, proto: Proto = Proto.ANY) -> None:
        """Delete all SAs of this namespace, also those of others."""
        self._order("delete all SAs", Msg.FLUSHSA, flush_message(proto))

    # Policies

    def add_policy(self, policy: KernelPolicy) -> None:
        """Add a policy; EEXIST if one with its selector, direction, mark and if_id is there."""
        self._order(f"add policy {_named(policy)}", Msg.NEWPOLICY, policy_message(policy))

    def update_policy(self, policy: KernelPolicy) -> None:
        """Add a policy, or replace the one with its selector, direction, mark and if_id."""
        self._order(f"update policy {_named(policy)}", Msg.UPDPOLICY, policy_message(policy))

    def delete_policy(self, policy: KernelPolicy) -> bool:
        """Delete the policy with this selector, direction, mark and if_id; whether it was there."""
        message = policy_id_message(policy)
        return self._delete(f"delete policy {_named(policy)}", Msg.DELPOLICY, message)

    def delete_policies(self, is_ours: Callable[[KernelPolicy], bool]) -> int:
        """Delete the policies of which that is true; how many there were."""
        ours = [policy for policy in self.policies() if is_ours(policy)]
        return sum(map(self.delete_policy, ours))

    def find_policy(self, policy: KernelPolicy) -> KernelPolicy | None:
        """The policy with this selector, direction, mark and if_id as it is now."""
        message = policy_id_message(policy)
        octets = self._find(f"read policy {_named(policy)}", Msg.GETPOLICY, message)
        return None if octets is None else read_policy(octets)

    def policies(self) -> list[KernelPolicy]:
        """All policies of this namespace, also those of others, but not those of sockets."""
        found = map(read_policy, self._dump("read all policies", Msg.GETPOLICY))
        return [policy for policy in found if policy.direction <= Direction.FWD]

    def flush_policies(self) -> None:
        """Delete all policies of this namespace, also those of others, but not those of sockets."""
        self._order("delete all policies", Msg.FLUSHPOLICY, Bare())

    def migrate(
        self,
        policy: KernelPolicy,
        migrations: Sequence[Migration],
        encapsulation: Encapsulation | None = None,
        state: tuple[SaId, Replay] | None = None,
        others: Sequence[KernelPolicy] = (),
    ) -> None:
        """Give the templates of a policy, and all SAs that they fit, other addresses.

        The SAs go on with their keys and sequence numbers. One to six moves; ENOPROTOOPT where the
        kernel cannot. ``encapsulation`` is what all these SAs get; None leaves them theirs.
        In the same system call, whatever becomes of that, sequence numbers are set, as by
        ``set_state``, and ``others`` are updated; the first refusal is raised.
        """
        requests = [(Msg.MIGRATE, migrate_message(policy, migrations, encapsulation), 0)]
        if state is not None:
            requests.append((Msg.NEWAE, state_message(state[0], None, state[1], None), _REPLACE))
        requests += ((Msg.UPDPOLICY, policy_message(each), 0) for each in others)
        *before, (kind, last, flags) = requests
        operation = f"migrate {_named(policy)}"
        _check(operation, next(self._answers(operation, kind, last, flags | _ACK, before)))

    # Requests

    def _order(self, operation: str, kind: Msg, message: XfrmMessage, flags: int = 0) -> None:
        """Have something done."""
        _check(operation, next(self._answers(operation, kind, message, flags | _ACK)))

    def _ask(self, operation: str, kind: Msg, message: XfrmMessage) -> bytes:
        """Ask for one thing."""
        answer = next(self._answers(operation, kind, message, 0))
        _check(operation, answer)
        return answer.octets

    def _delete(self, operation: str, kind: Msg, message: XfrmMessage) -> bool:
        try:
            self._order(operation, kind, message)
        except KernelRefused as refusal:
            if refusal.number not in _NOT_THERE:
                raise
            return False
        return True

    def _find(self, operation: str, kind: Msg, message: XfrmMessage) -> bytes | None:
        try:
            return self._ask(operation, kind, message)
        except KernelRefused as refusal:
            if refusal.number not in _NOT_THERE:
                raise
            return None

    def _dump(self, operation: str, kind: Msg) -> Iterator[bytes]:
        """Ask for all there is."""
        for answer in self._answers(operation, kind, Bare(), _DUMP):
            _check(operation, answer)
            if answer.kind == _DONE:
                return
            yield answer.octets

    def _answers(
        self,
        operation: str,
        kind: Msg,
        message: XfrmMessage,
        flags: int,
        before: Iterable[tuple[Msg, XfrmMessage, int]] = (),
    ) -> Iterator[_Message]:
        """Send a request, and give its answers one by one; the caller knows which is the last.

        Of what is asked ``before`` it, in the same call, only a refusal is answered.
        """
        self._sequence = (self._sequence + 1) & 0xFFFF_FFFF
        octets = [
            encoded(each, of_kind, with_flags | _REQUEST, self._sequence)
            for of_kind, each, with_flags in (*before, (kind, message, flags))
        ]
        try:
            self._socket.send(b"".join(octets))
            while True:
                for answer in _split(self._socket.recv(_RECEIVE)):
                    if answer.sequence == self._sequence:
                        yield answer
        except OSError as error:
            raise _refusal(operation, error.errno or errno.ETIMEDOUT) from error


class XfrmMonitor:
    """Hears what happens to SAs and policies of this namespace; see ``Event``."""

    def __init__(self, groups: Iterable[Group], kinds: Sequence[Msg] = ()) -> None:
        """Join the groups; of their messages come only those of some kinds, if there are any.

        Raises:
            KernelRefused: this kernel has no XFRM, or the right to hear is missing.
        """
        self._socket = _open()
        self._socket.setblocking(False)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _EVENTS_BUFFER)
            if kinds:
                _let_in(self._socket, kinds)
            for group in groups:
                self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        except OSError as error:
            self.close()
            raise _refusal("hear of SAs and policies", error.errno or 0) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the groups."""
        self._socket.close()

    def fileno(self) -> int:
        """The descriptor, readable when there are events."""
        return self._socket.fileno()

    def read(self) -> list[Event]:
        """The events since the last call, without waiting for one."""
        events: list[Event] = []
        with suppress(BlockingIOError):
            while True:
                events += self._read_some()
        return events

    def _read_some(self) -> list[Event]:
        """The events of one datagram.

        Raises:
            BlockingIOError: there is none.
        """
        try:
            octets, sender = self._socket.recvfrom(_RECEIVE)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return [EventsLost()]
        if sender[0] != _KERNEL:
            return []
        events = (read_event(message.kind, message.octets) for message in _split(octets))
        return [event for event in events if event is not None]


def _open() -> socket.socket:
    try:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_XFRM)
    except OSError as error:
        raise _refusal("speak with the kernel's IPsec", error.errno or 0) from error
    opened.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
    opened.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
    opened.bind((0, 0))
    return opened


def _let_in(monitor: socket.socket, kinds: Sequence[Msg]) -> None:
    """Have the kernel drop what is of no such kind, by a program for it (BPF)."""
    swapped = [int.from_bytes(kind.to_bytes(2, sys.byteorder)) for kind in kinds]
    steps = [
        _STEP.pack(_LOAD_HALF, 0, 0, _KIND_OFFSET),
        *(_STEP.pack(_JUMP_IF, len(kinds) - n, 0, kind) for n, kind in enumerate(swapped)),
        _STEP.pack(_RETURN, 0, 0, 0),
        _STEP.pack(_RETURN, 0, 0, _RECEIVE),
    ]
    program = create_string_buffer(b"".join(steps))
    pointer = _PROGRAM.pack(len(steps), addressof(program))
    monitor.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)


def _split(octets: bytes) -> Iterator[_Message]:
    """The messages of a datagram."""
    offset = 0
    while offset + _HEADER.size <= len(octets):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(octets, offset)
        if length < _HEADER.size:
            return
        yield _Message(kind, flags, sequence, octets[offset : offset + length])
        offset += (length + 3) & ~3


def _check(operation: str, answer: _Message) -> None:
    """Raise what an answer says against the request."""
    if answer.kind not in {_ERROR, _DONE}:
        return
    (number,) = _NUMBER.unpack_from(answer.octets, _HEADER.size)
    if number:
        raise _refusal(operation, -number, _explanation(answer))


def _explanation(answer: _Message) -> str:
    """What the kernel says beside the number, if anything."""
    if not answer.flags & _ACK_HAS_ATTRIBUTES or answer.kind != _ERROR:
        return ""
    message = ErrorMessage(answer.octets)
    message.decode()
    return str(message.get_attr("NLMSGERR_ATTR_MSG") or "")


def _refusal(operation: str, number: int, explanation: str = "") -> KernelRefused:
    parts = [os.strerror(number), explanation.rstrip("."), _CURES.get(number, "")]
    return KernelRefused(operation, number, "; ".join(filter(None, parts)))


def _named(policy: KernelPolicy) -> str:
    return f"{policy.direction.name.lower()} {policy.selector}"
