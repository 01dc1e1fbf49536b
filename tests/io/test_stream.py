"""A stream transport on real sockets; test names carry the rows of the RFC 9329 checklist."""

import asyncio
import select
import signal
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path as FilePath

import pytest

from tests.io.samples import (
    IKE,
    NAME,
    PATIENCE_S,
    Owner,
    address_of,
    datagrams_at,
    esp,
    receive,
    stream,
    tcp_pair,
    tls_pair,
    tls_server,
    train,
    until,
)
from tunnelwrap.errors import ConnectFailed, PathClosed, UsageError
from tunnelwrap.transport import Transport
from tunnelwrap.transport.dial import open_tls, tls_context
from tunnelwrap.transport.stream import INBOX, MAX_URGENT, RECORD
from tunnelwrap.wire.framing import MAX_DATAGRAM, PREFIX, frame

MUCH = 4 << 20  # more than the socket takes while nobody reads
PACKETS = [esp(number) for number in range(MUCH // 1474)]

Pair = Callable[[], Awaitable[tuple[socket.socket, socket.socket]]]


@pytest.fixture(params=["tcp", "tls"])
async def pair(request: pytest.FixtureRequest, tmp_path: FilePath) -> AsyncIterator[Pair]:
    """Makes connections, the originator's end first; both ends are closed after the test."""
    made: list[socket.socket] = []

    async def make() -> tuple[socket.socket, socket.socket]:
        both = tcp_pair() if request.param == "tcp" else await tls_pair(tmp_path)
        made.extend(both)
        return both

    yield make
    for sock in made:
        sock.close()


def length_of(packets: list[bytes]) -> int:
    return sum(len(packet) + 2 for packet in packets)


# --- prefix and frames -------------------------------------------------------------------------


@pytest.mark.rfc("9329", "4")
async def test_f8_f9_prefix_and_first_message_leave_in_one_piece(pair: Pair) -> None:
    near, far = await pair()
    transport = stream(near, Owner(), is_originator=True)
    transport.send(IKE)
    assert await asyncio.to_thread(far.recv, 65536) == PREFIX + frame(IKE)
    transport.send(IKE)
    assert await asyncio.to_thread(far.recv, 65536) == frame(IKE)
    transport.close()


@pytest.mark.rfc("9329", "6.1")
async def test_f11_a_stream_that_begins_with_esp_has_the_prefix_too(pair: Pair) -> None:
    near, far = await pair()
    transport = stream(near, Owner(), is_originator=True)
    frames, ends = train([esp(1), esp(2)])
    assert transport.send_esp(frames, ends) == 0
    assert await asyncio.to_thread(far.recv, 65536) == PREFIX + bytes(frames)
    transport.close()


@pytest.mark.rfc("9329", "4")
async def test_f8_the_responder_sends_no_prefix(pair: Pair) -> None:
    near, far = await pair()
    transport = stream(far, Owner())
    transport.send(IKE)
    assert await asyncio.to_thread(near.recv, 65536) == frame(IKE)
    transport.close()


@pytest.mark.rfc("9329", "6.1")
async def test_f10_the_prefix_may_come_octet_by_octet(pair: Pair) -> None:
    near, far = await pair()
    owner = Owner()
    transport = stream(far, owner)
    for octet in PREFIX:
        near.sendall(bytes([octet]))
        await asyncio.sleep(0)
    assert not owner.errors
    near.sendall(frame(IKE))
    await until(lambda: owner.got)
    assert owner.got == [IKE]
    transport.close()


async def test_a_stream_without_the_prefix_is_closed(pair: Pair) -> None:
    near, far = await pair()
    owner = Owner()
    stream(far, owner)
    near.sendall(b"IKETCQ" + frame(IKE))
    await until(lambda: owner.errors)
    assert "IKETCP" in str(owner.errors[0])
    assert not owner.got


async def test_what_was_read_before_comes_first_and_from_the_loop(pair: Pair) -> None:
    near, far = await pair()
    near.sendall(frame(b"second") + frame(b"third"))
    owner = Owner()
    transport = stream(far, owner, received=PREFIX + frame(b"first"))
    assert not owner.got
    await until(lambda: len(owner.got) == 3)
    assert owner.got == [b"first", b"second", b"third"]
    transport.close()


async def test_a_record_that_was_half_read_needs_no_further_octet_to_be_seen(
    tmp_path: FilePath,
) -> None:
    near, far = await tls_pair(tmp_path)
    near.sendall(PREFIX + frame(IKE))
    begin = await asyncio.to_thread(far.recv, 3)
    owner = Owner()
    transport = stream(far, owner, received=begin)
    await until(lambda: owner.got)
    assert owner.got == [IKE]
    transport.close()
    near.close()


@pytest.mark.parametrize("size", [1, 2, 7, 1000, 1475])
async def test_frames_may_be_cut_anywhere(pair: Pair, size: int) -> None:
    near, far = await pair()
    owner = Owner()
    transport = stream(far, owner)
    packets = [IKE, esp(1, 400), b"\xff", esp(2, 90), esp(3, 1000)]
    octets = PREFIX + b"".join(map(frame, packets))
    for at in range(0, len(octets), size):
        near.sendall(octets[at : at + size])
        await asyncio.sleep(0)
    await until(lambda: len(owner.got) == len(packets))
    assert owner.got == packets
    transport.close()


async def test_much_arrives_in_batches_of_bounded_size(pair: Pair) -> None:
    near, far = await pair()
    owner = Owner()
    transport = stream(far, owner)
    octets = PREFIX + b"".join(map(frame, PACKETS))
    sending = asyncio.create_task(asyncio.to_thread(near.sendall, octets))  # noqa: TID251 -- a test
    await until(lambda: len(owner.got) == len(PACKETS))
    await sending
    assert owner.got == PACKETS
    assert max(map(length_of, owner.batches)) <= INBOX + 1474
    assert len(owner.batches) < len(PACKETS) / 2
    transport.close()


async def test_what_tls_holds_behind_a_full_inbox_is_not_forgotten(tmp_path: FilePath) -> None:
    """No selector announces it: it has left the socket."""
    near, far = await tls_pair(tmp_path)
    owner = Owner()
    transport = stream(far, owner)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    room = 100 + INBOX - len(PREFIX)
    packets = PACKETS[: room // 1474 - 1]
    packets.append(esp(0, room - length_of(packets) - 2))
    octets = PREFIX + b"".join(map(frame, packets))
    near.sendall(octets[:100])  # so that the last record lies across the end of the inbox
    near.sendall(octets[100:])
    await until(lambda: len(owner.got) == len(packets))
    assert owner.got == packets
    transport.close()
    near.close()


@pytest.mark.rfc("9329", "3")
async def test_f4_empty_frames_are_ignored(pair: Pair) -> None:
    near, far = await pair()
    owner = Owner()
    transport = stream(far, owner)
    near.sendall(PREFIX + b"\0\2" + frame(IKE) + b"\0\2" + frame(IKE))
    await until(lambda: len(owner.got) == 2)
    assert owner.got == [IKE, IKE]
    transport.close()


@pytest.mark.rfc("9329", "3.1")
@pytest.mark.parametrize("length", [0, 1])
async def test_f5_length_0_or_1_ends_the_stream(pair: Pair, length: int) -> None:
    near, far = await pair()
    owner = Owner()
    transport = stream(far, owner)
    near.sendall(PREFIX + bytes([0, length]))
    await until(lambda: owner.errors)
    assert str(owner.errors[0]) == f"stream is corrupt: frame length {length}, at least 2"
    assert await receive(near, 1) == b""
    transport.send(IKE)
    await asyncio.sleep(0)
    assert len(owner.errors) == 1
    assert owner.senders == [transport]


@pytest.mark.rfc("9329", "3")
async def test_f2_what_fits_no_frame_is_refused_and_leaves_the_stream_whole(pair: Pair) -> None:
    near, far = await pair()
    transport = stream(near, Owner(), is_originator=True)
    with pytest.raises(UsageError):
        transport.send(bytes(MAX_DATAGRAM + 1))
    transport.send(bytes(MAX_DATAGRAM))
    expected = PREFIX + frame(bytes(MAX_DATAGRAM))
    assert await receive(far, len(expected)) == expected
    transport.close()


# --- congestion --------------------------------------------------------------------------------


async def test_ike_overtakes_esp_that_waits_and_splits_no_frame(pair: Pair) -> None:
    near, far = await pair()
    transport = stream(near, Owner(), is_originator=True)
    frames, ends = train(PACKETS)
    assert transport.send_esp(frames, ends) == 0
    assert transport.is_congested
    await asyncio.sleep(0.01)  # the socket may take a little more
    transport.send(IKE)
    transport.send(IKE + b"2")
    octets = len(PREFIX) + len(frames) + length_of([IKE, IKE + b"2"])
    arrived = await datagrams_at(far, octets, prefix=True)
    place = arrived.index(IKE)
    assert arrived[place : place + 2] == [IKE, IKE + b"2"]
    assert arrived[:place] + arrived[place + 2 :] == PACKETS
    assert place < len(PACKETS) - RECORD // 1474
    transport.close()


async def test_congestion_drops_whole_trains_and_passes(pair: Pair) -> None:
    near, far = await pair()
    transport = stream(far, Owner())
    assert not transport.is_congested
    frames, ends = train(PACKETS)
    assert transport.send_esp(frames, ends) == 0
    assert transport.is_congested
    assert transport.send_esp(*train([esp(1), esp(2)])) == 2
    assert await datagrams_at(near, len(frames), prefix=False) == PACKETS
    await until(lambda: not transport.is_congested)
    again, ends = train([esp(3)])
    assert transport.send_esp(again, ends) == 0
    assert await receive(near, len(again)) == again
    transport.close()


async def test_the_buffer_of_a_train_is_the_callers_again(pair: Pair) -> None:
    near, far = await pair()
    transport = stream(far, Owner())
    frames, ends = train(PACKETS)
    transport.send_esp(frames, ends)
    frames[:] = bytes(len(frames))
    assert await datagrams_at(near, len(frames), prefix=False) == PACKETS
    transport.close()


async def test_a_peer_that_takes_no_ike_loses_the_stream(pair: Pair) -> None:
    near, far = await pair()
    owner = Owner()
    transport = stream(far, owner)
    frames, ends = train(PACKETS)
    transport.send_esp(frames, ends)
    await asyncio.sleep(0.01)  # the socket may take a little more
    most = MAX_URGENT // (MAX_DATAGRAM + 2)
    for _ in range(most):
        transport.send(bytes(MAX_DATAGRAM))
    await asyncio.sleep(0)
    assert not owner.errors
    transport.send(bytes(MAX_DATAGRAM))
    assert not owner.errors  # only from the loop
    await until(lambda: owner.errors)
    assert str(owner.errors[0]).startswith("peer takes nothing")
    near.close()


# --- the end -----------------------------------------------------------------------------------


@pytest.mark.rfc("9329", "6.1")
async def test_c4_a_reset_is_told_once(pair: Pair) -> None:
    near, far = await pair()
    owner = Owner()
    transport = stream(far, owner)
    await asyncio.sleep(0.01)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.close(near.detach())
    await until(lambda: owner.errors)
    transport.send(IKE)
    assert transport.send_esp(*train([esp(1)])) == 1
    assert transport.is_congested
    await asyncio.sleep(0.01)
    [error] = owner.errors
    assert isinstance(error, PathClosed)
    assert str(error) in {"connection reset by peer", "peer broke the connection"}


async def test_what_the_peer_said_before_it_went_is_heard_though_writing_fails(pair: Pair) -> None:
    near, far = await pair()
    owner = Owner()
    transport = stream(near, owner, is_originator=True)
    await asyncio.sleep(0)
    far.sendall(frame(IKE))
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.close(far.detach())
    for _ in range(3):
        transport.send(IKE)
    assert not owner.got
    assert not owner.errors
    await until(lambda: owner.errors)
    assert owner.got == [IKE]
    assert len(owner.errors) == 1


@pytest.mark.rfc("9329", "6.1")
async def test_c8_half_a_frame_is_dropped_at_the_end(pair: Pair) -> None:
    near, far = await pair()
    owner = Owner()
    stream(far, owner)
    near.sendall(PREFIX + frame(IKE) + frame(esp(1))[:-1])
    near.shutdown(socket.SHUT_WR)
    await until(lambda: owner.errors)
    assert owner.got == [IKE]


@pytest.mark.rfc("9329", "B.2")
async def test_c20_close_ends_ike_then_tls_then_tcp(pair: Pair) -> None:
    """Without close_notify the peer's recv would raise (suppress_ragged_eofs is off)."""
    near, far = await pair()
    owner = Owner()
    transport = stream(near, owner, is_originator=True)
    transport.send(IKE)
    transport.close()
    transport.close()
    assert await receive(far, 100) == PREFIX + frame(IKE)
    assert await receive(far, 1) == b""
    await asyncio.sleep(0.01)
    assert not owner.errors
    assert near.fileno() == -1


async def test_close_with_unread_octets_does_not_reset(pair: Pair) -> None:
    near, far = await pair()
    transport = stream(far, Owner())
    await asyncio.sleep(0.01)
    near.sendall(bytes(50000))
    transport.send(IKE)
    transport.close()
    assert await receive(near, 100) == frame(IKE)


async def test_close_leaves_out_esp_that_waits_but_not_the_frame_that_is_begun() -> None:
    near, far = tcp_pair()
    transport = stream(far, Owner())
    frames, ends = train(PACKETS)
    transport.send_esp(frames, ends)
    await asyncio.sleep(0.01)
    transport.close()
    octets = await receive(near, len(frames))
    assert 0 < len(octets) < len(frames)
    assert bytes(frames).startswith(octets)
    near.close()


async def test_close_from_within_a_batch_leaves_its_views_alone(pair: Pair) -> None:
    near, far = await pair()
    seen: list[bytes] = []

    class Leaver(Owner):
        def batch(self, transport: Transport, batch: Sequence[memoryview]) -> None:
            near.sendall(bytes(30000))
            transport.close()
            seen.extend(map(bytes, batch))

    owner = Leaver()
    stream(far, owner)
    near.sendall(PREFIX + frame(esp(1)) + frame(esp(2)))
    await until(lambda: seen)
    assert seen == [esp(1), esp(2)]
    assert not owner.errors


async def test_a_peers_close_notify_ends_the_stream(tmp_path: FilePath) -> None:
    near, far = await tls_pair(tmp_path)
    owner = Owner()
    transport = stream(far, owner)
    near.sendall(PREFIX + frame(IKE))
    near.setblocking(False)
    with pytest.raises(ssl.SSLWantReadError):
        near.unwrap()
    await until(lambda: owner.errors)
    assert owner.got == [IKE]
    assert str(owner.errors[0]) == "peer closed the stream"
    assert transport.is_congested
    near.close()


async def test_a_forged_record_ends_the_stream(tmp_path: FilePath) -> None:
    near, far = await tls_pair(tmp_path)
    owner = Owner()
    stream(far, owner)
    await asyncio.sleep(0.01)
    socket.socket.send(near, b"\x17\x03\x03\x00\x20" + bytes(32))
    await until(lambda: owner.errors)
    assert str(owner.errors[0]).startswith("TLS: ")
    near.close()


# --- TLS that wants to read before it writes ---------------------------------------------------


class OpensslServer:
    """``openssl s_server``, which can be told to change keys; it writes what it gets to a file."""

    def __init__(self, directory: FilePath, *version: str) -> None:
        _, self.ca = tls_server(directory)
        self.heard = directory / "heard"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = address_of(probe)
        file = str(directory / "server.pem")
        with self.heard.open("wb") as heard:
            self.process = subprocess.Popen(
                ["openssl", "s_server", *version, "-accept", str(self.address), "-cert", file],
                stdin=subprocess.PIPE,
                stdout=heard,
            )

    def type(self, line: bytes) -> None:
        """Send a line, or have a command of one letter done."""
        assert self.process.stdin
        self.process.stdin.write(line)
        self.process.stdin.flush()

    async def connect(self) -> ssl.SSLSocket:
        """Connect as soon as it listens."""
        context = tls_context(self.ca, None)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with suppress(ConnectFailed):
                    return await open_tls(self.address, NAME, context)
                await asyncio.sleep(0.01)


@pytest.fixture(params=["tls1.3", "tls1.2"])
def server(request: pytest.FixtureRequest, tmp_path: FilePath) -> Iterator[OpensslServer]:
    server = OpensslServer(tmp_path, *["-tls1_2"] * (request.param == "tls1.2"))
    yield server
    server.process.kill()
    server.process.communicate()


async def test_keys_may_change_while_both_sides_speak(server: OpensslServer) -> None:
    """KeyUpdate, or in TLS 1.2 a renegotiation, in whose midst nothing can be written."""
    sock = await server.connect()
    owner = Owner()
    transport = stream(sock, owner, is_originator=True)
    transport.send(b"before")
    await until(lambda: b"before" in server.heard.read_bytes())
    server.type(b"r\n" if sock.version() == "TLSv1.2" else b"K\n")
    assert select.select([sock], [], [], PATIENCE_S)[0]  # the loop must not read it yet
    server.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(0.05)  # our half of it
    transport.send(b"meanwhile")
    server.process.send_signal(signal.SIGCONT)
    await until(lambda: b"meanwhile" in server.heard.read_bytes())
    server.type(b"\0\x08hello\n")
    await until(lambda: owner.got)
    assert owner.got == [b"hello\n"]
    assert not transport.is_congested
    transport.close()
