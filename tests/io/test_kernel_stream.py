"""A stream for the kernel, on real sockets: up to the hand-over, and what is said behind it.

Few kernels have espintcp; see tests/kernel/whole for one that has. Here the socket says yes for it,
and keeps what was unread at that moment: there the kernel would begin to look for frames.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Iterator, Sequence

import pytest

from tests.io.samples import IKE, Owner, address_of, esp, tcp_pair, train, until
from tunnelwrap.errors import StreamCorrupt, TransportError
from tunnelwrap.path import Carrier, Path, SocketAddress
from tunnelwrap.transport import Transport
from tunnelwrap.transport.kernel_stream import ESPINTCP, TCP_ULP, KernelStream, suits_kernel
from tunnelwrap.transport.stream import MAX_URGENT
from tunnelwrap.transport.udp import IP_XFRM_POLICY
from tunnelwrap.wire.framing import PREFIX, frame

FIRST_ESP = frame(esp(1)) + frame(esp(2))
LARGE = [bytes(4) + bytes([number]) * 60_000 for number in range(12)]


class Socket(socket.socket):
    """A connected socket that plays the kernel's part in a hand-over.

    ``unread`` is what was there to be read then; ``refuses`` with that error instead.
    """

    unread: bytes | None = None
    refuses = 0
    full = 0  # how often it takes nothing more
    messages: tuple[bytes, ...] = ()  # what was sent, whole, since then

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:  # type: ignore[override] -- of the three forms one is used
        if (level, option) == (socket.IPPROTO_IP, IP_XFRM_POLICY):
            return  # takes the right to it, and is the kernel's affair
        if (level, option) != (socket.IPPROTO_TCP, TCP_ULP):
            super().setsockopt(level, option, value)
            return
        assert value == ESPINTCP
        if self.refuses:
            raise OSError(self.refuses, os.strerror(self.refuses))
        try:
            self.unread = self.recv(1 << 20, socket.MSG_PEEK)
        except BlockingIOError:
            self.unread = b""

    def send(self, octets: bytes, flags: int = 0) -> int:  # type: ignore[override] -- as used
        if self.unread is None:
            return super().send(octets, flags)
        if self.full:
            self.full -= 1
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self.messages += (octets,)
        return len(octets)


Pair = tuple[Socket, Socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = (Socket(fileno=sock.detach()) for sock in tcp_pair())
    yield near, far
    near.close()
    far.close()


def kernel_stream(
    sock: socket.socket, owner: Owner, *, is_originator: bool = False, received: bytes = b""
) -> KernelStream:
    sock.setblocking(False)
    path = Path(address_of(sock), SocketAddress.of(sock.getpeername()), Carrier.TCP)
    return KernelStream(
        *(sock, path, owner.batch, owner.error, asyncio.get_running_loop()),
        is_originator=is_originator,
        received=received,
    )


class Handing(Owner):
    """An owner that lets the kernel have the stream as soon as something has come."""

    def batch(self, transport: Transport, batch: Sequence[memoryview]) -> None:
        super().batch(transport, batch)
        assert isinstance(transport, KernelStream)
        transport.hand_over()


# --- before the hand-over ----------------------------------------------------------------------


@pytest.mark.rfc("9329", "4")
async def test_it_begins_like_every_stream(pair: Pair) -> None:
    near, far = pair
    owners = Owner(), Owner()
    ours = kernel_stream(near, owners[0], is_originator=True)
    theirs = kernel_stream(far, owners[1])
    ours.send(IKE)
    ours.send(IKE * 2)
    await until(lambda: len(owners[1].got) == 2)
    theirs.send(IKE * 3)
    await until(lambda: owners[0].got)
    assert (owners[0].got, owners[1].got) == ([IKE * 3], [IKE, IKE * 2])
    ours.close()
    await until(lambda: owners[1].errors)
    assert str(owners[1].errors[0]) == "peer closed the stream"


@pytest.mark.rfc("9329", "4")
async def test_the_prefix_leaves_in_one_piece_with_the_first_message(pair: Pair) -> None:
    near, far = pair
    transport = kernel_stream(near, Owner(), is_originator=True)
    transport.send(IKE)
    far.setblocking(True)
    assert await asyncio.to_thread(far.recv, 65536) == PREFIX + frame(IKE)
    transport.close()


@pytest.mark.rfc("9329", "6.1")
async def test_a_stream_without_the_prefix_is_closed(pair: Pair) -> None:
    near, far = pair
    owner = Owner()
    kernel_stream(far, owner)
    near.sendall(b"IKETCQ" + frame(IKE))
    await until(lambda: owner.errors)
    assert isinstance(owner.errors[0], StreamCorrupt)


async def test_a_web_server_is_told_from_a_gateway(pair: Pair) -> None:
    near, far = pair
    owner = Owner()
    kernel_stream(near, owner, is_originator=True)
    far.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await until(lambda: owner.errors)
    assert "web server" in str(owner.errors[0])


async def test_a_peer_that_takes_nothing_is_left(pair: Pair) -> None:
    near, _ = pair
    owner = Owner()
    transport = kernel_stream(near, owner, is_originator=True)
    for _ in range(5 * MAX_URGENT // 60_000):
        transport.send(LARGE[0])
    await until(lambda: owner.errors)
    assert "takes nothing" in str(owner.errors[0])


async def test_esp_is_not_for_it(pair: Pair) -> None:
    near, _ = pair
    transport = kernel_stream(near, Owner(), is_originator=True)
    assert transport.send_esp(*train([esp(1), esp(2)])) == 2
    transport.close()


# --- the boundary ------------------------------------------------------------------------------


async def test_nothing_is_read_of_what_follows_the_message_that_hands_over(pair: Pair) -> None:
    near, far = pair
    near.sendall(PREFIX + frame(IKE) + FIRST_ESP)
    owner = Handing()
    transport = kernel_stream(far, owner)
    await until(lambda: far.unread is not None)
    assert (owner.batches[0], far.unread) == ([IKE], FIRST_ESP)
    transport.close()


@pytest.mark.parametrize("begun", [PREFIX[:3], PREFIX + b"\0", PREFIX + frame(IKE)[:9]])
async def test_a_frame_that_is_begun_is_completed_first_and_not_an_octet_more(
    pair: Pair, begun: bytes
) -> None:
    near, far = pair
    owner = Owner()
    near.sendall(begun)
    transport = kernel_stream(far, owner)
    await until(lambda: not _waits(far))
    transport.hand_over()
    assert far.unread is None  # not yet
    whole = PREFIX if len(begun) < len(PREFIX) else PREFIX + frame(IKE)
    near.sendall(whole[len(begun) :] + FIRST_ESP)
    await until(lambda: far.unread is not None)
    assert far.unread == FIRST_ESP
    transport.close()


@pytest.mark.parametrize("missing", range(len(frame(IKE))))
async def test_what_was_read_before_it_was_ours_is_made_whole(pair: Pair, missing: int) -> None:
    near, far = pair
    stream = PREFIX + frame(IKE * 2) + frame(IKE)
    at = len(stream) - missing
    near.sendall(stream[at:] + FIRST_ESP)
    owner = Handing()
    transport = kernel_stream(far, owner, received=stream[:at])
    await until(lambda: far.unread is not None)
    assert (b"".join(owner.got)[: 3 * len(IKE)], far.unread) == (IKE * 3, FIRST_ESP)
    transport.close()


async def test_what_is_half_written_is_written_first_and_the_rest_as_messages(pair: Pair) -> None:
    near, far = pair
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    transport = kernel_stream(near, Owner(), is_originator=True)
    for message in LARGE:
        transport.send(message)
    transport.hand_over()
    assert near.unread is None  # not yet
    taken = b""
    far.setblocking(False)
    while near.unread is None:
        await asyncio.sleep(0)
        while _waits(far):
            taken += far.recv(1 << 20)
    await until(lambda: not transport.is_congested)
    while _waits(far):
        taken += far.recv(1 << 20)
    framed = len(LARGE) - len(near.messages)
    assert 0 < framed < len(LARGE)
    assert taken == PREFIX + b"".join(map(frame, LARGE[:framed]))
    assert list(near.messages) == LARGE[framed:]
    transport.close()


@pytest.mark.rfc("9329", "6.1")
async def test_the_prefix_goes_before_the_kernels_first_packet(pair: Pair) -> None:
    near, far = pair
    transport = kernel_stream(near, Owner(), is_originator=True)
    transport.hand_over()
    transport.send(IKE)
    far.setblocking(True)
    assert await asyncio.to_thread(far.recv, 65536) == PREFIX
    assert near.messages == (IKE,)
    transport.close()


async def test_a_kernel_that_will_not_says_why(pair: Pair) -> None:
    near, far = pair
    far.refuses = errno.ENOENT
    owner = Owner()
    transport = kernel_stream(far, owner)
    near.sendall(PREFIX + frame(IKE))
    await until(lambda: owner.got)
    with pytest.raises(TransportError, match="espintcp: no such file or directory"):
        transport.hand_over()
    near.sendall(b"\0")
    await until(lambda: not _waits(far))
    transport.hand_over()
    near.sendall(frame(IKE)[1:])
    await until(lambda: owner.errors)
    assert "espintcp" in str(owner.errors[0])


# --- behind it ---------------------------------------------------------------------------------


async def test_a_message_that_the_kernel_does_not_take_is_offered_again(pair: Pair) -> None:
    near, _ = pair
    transport = kernel_stream(near, Owner(), is_originator=True)
    transport.hand_over()
    near.full = 3
    transport.send(IKE)
    transport.send(IKE * 2)
    assert transport.is_congested
    await until(lambda: not transport.is_congested)
    assert near.messages == (IKE, IKE * 2)
    transport.close()


async def test_the_end_is_seen(pair: Pair) -> None:
    near, far = pair
    owner = Owner()
    transport = kernel_stream(near, owner, is_originator=True)
    transport.hand_over()
    far.close()
    await until(lambda: owner.errors)
    assert not transport.is_congested


def test_it_suits_bare_tcp_with_other_hosts_only(pair: Pair) -> None:
    near, _ = pair
    assert not suits_kernel(near, Carrier.TCP)  # both ends are on this host
    assert not suits_kernel(near, Carrier.TLS)


def _waits(sock: socket.socket) -> bool:
    """Whether something is there to be read."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
