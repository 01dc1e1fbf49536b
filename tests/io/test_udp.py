"""UDP transports on real sockets: peers, addresses, trains that the kernel cuts and joins."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import replace

import pytest

from tests.io.samples import IKE, PATIENCE_S, Owner, address_of, esp, local, train, until
from tunnelwrap.errors import ConnectFailed, TransportError
from tunnelwrap.path import Carrier, Path, SocketAddress
from tunnelwrap.transport.dial import open_udp
from tunnelwrap.transport.udp import MAX_PEERS, UDP_GRO, UdpListener, UdpTransport

SO_NO_CHECK = 11
ENDS = {"v4": "127.0.0.1", "v6": "::1"}


class Gateway(Owner):
    """A listener that records."""

    def __init__(self, ip: str = "127.0.0.1", port: int = 0, *, has_marker: bool = True) -> None:
        super().__init__()
        loop = asyncio.get_running_loop()
        self.udp = UdpListener(local(port, ip), self.batch, loop, has_marker=has_marker)


def client(peer: SocketAddress, owner: Owner, *, has_marker: bool = True) -> UdpTransport:
    loop = asyncio.get_running_loop()
    return open_udp(peer, owner.batch, owner.error, loop, has_marker=has_marker)


def connected(sock: socket.socket, peer: SocketAddress) -> tuple[UdpTransport, Owner]:
    """A transport over a socket of the test's own making."""
    owner, path = Owner(), Path(address_of(sock), peer, Carrier.UDP)
    loop = asyncio.get_running_loop()
    return UdpTransport(sock, path, owner.batch, owner.error, loop), owner


def plain(peer: SocketAddress | None = None, ip: str = "127.0.0.1") -> socket.socket:
    """A socket of the system, connected if there is a peer."""
    sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(PATIENCE_S)
    sock.bind((ip, 0))
    if peer is not None:
        sock.connect((str(peer.ip), peer.port))
    return sock


@pytest.fixture
async def closing() -> AsyncIterator[Callable[..., None]]:
    """Closes everything that is named to it after the test."""
    with ExitStack() as stack:

        def later(*things: UdpListener | UdpTransport | socket.socket) -> None:
            for thing in things:
                stack.callback(thing.close)

        yield later


@pytest.mark.parametrize("ip", ENDS.values(), ids=ENDS)
async def test_both_ways(closing: Callable[..., None], ip: str) -> None:
    gateway, owner = Gateway(ip), Owner()
    transport = client(gateway.udp.address, owner)
    closing(gateway.udp, transport)
    assert transport.path.peer == gateway.udp.address
    assert transport.path.carrier is Carrier.UDP
    transport.send(IKE)
    await until(lambda: gateway.got)
    back = gateway.senders[0]
    assert (back.path.local, back.path.peer) == (transport.path.peer, transport.path.local)
    back.send(IKE + b" answered")
    await until(lambda: owner.got)
    assert owner.got == [IKE + b" answered"]
    assert owner.senders == [transport]
    assert not transport.is_congested


@pytest.mark.rfc("3948", "2.1")
@pytest.mark.parametrize("has_marker", [True, False])
async def test_paths_say_whether_ike_has_the_marker(
    closing: Callable[..., None], *, has_marker: bool
) -> None:
    gateway = Gateway(has_marker=has_marker)
    transport = client(gateway.udp.address, Owner(), has_marker=has_marker)
    closing(gateway.udp, transport)
    transport.send(IKE)
    await until(lambda: gateway.got)
    assert transport.path.has_marker is gateway.senders[0].path.has_marker is has_marker


@pytest.mark.rfc("7296", "2.11")
@pytest.mark.parametrize("near", ["127.0.0.1", "127.0.0.2"])
async def test_a_listener_on_all_addresses_answers_from_the_one_that_was_asked(
    closing: Callable[..., None], near: str
) -> None:
    gateway = Gateway("0.0.0.0")  # noqa: S104 -- the point of this test
    peer = plain(local(gateway.udp.address.port, near))
    closing(gateway.udp, peer)
    peer.send(IKE)
    await until(lambda: gateway.got)
    back = gateway.senders[0]
    assert back.path.local == local(gateway.udp.address.port, near)
    back.send(b"answer")
    back.send_esp(*train([esp(1), esp(2)]))
    # A connected socket takes nothing from another address.
    assert [peer.recv(2000) for _ in range(3)] == [b"answer", esp(1), esp(2)]


async def test_a_listener_on_all_ipv6_addresses_leaves_ipv4_to_another(
    closing: Callable[..., None],
) -> None:
    six = Gateway("::")
    four = Gateway("0.0.0.0", six.udp.address.port)  # noqa: S104 -- the point of this test
    transport = client(local(six.udp.address.port, "::1"), Owner())
    closing(six.udp, four.udp, transport)
    transport.send(IKE)
    await until(lambda: six.got)
    assert str(six.senders[0].path.local.ip) == "::1"
    assert not four.got


async def test_peers_are_told_apart_within_one_burst(closing: Callable[..., None]) -> None:
    gateway = Gateway()
    first, second = plain(gateway.udp.address), plain(gateway.udp.address)
    closing(gateway.udp, first, second)
    for sock, octets in ((first, b"1"), (first, b"2"), (second, b"3"), (first, b"4")):
        sock.send(octets)
    await until(lambda: len(gateway.got) == 4)
    assert gateway.batches == [[b"1", b"2"], [b"3"], [b"4"]]
    ports = [sender.path.peer for sender in gateway.senders]
    assert ports == [address_of(first), address_of(second), address_of(first)]
    assert gateway.senders[0] is gateway.senders[2]


async def test_datagrams_without_octets_are_ignored(closing: Callable[..., None]) -> None:
    gateway = Gateway()
    peer = plain(gateway.udp.address)
    closing(gateway.udp, peer)
    for octets in (b"", b"\xff", b""):
        peer.send(octets)
    await until(lambda: gateway.got)
    assert gateway.batches == [[b"\xff"]]


# --- paths -------------------------------------------------------------------------------------


async def test_a_path_finds_its_transport_again(closing: Callable[..., None]) -> None:
    gateway = Gateway()
    peer = plain()
    closing(gateway.udp, peer)
    path = Path(gateway.udp.address, address_of(peer), Carrier.UDP)
    transport = gateway.udp.transport_for(path)
    assert transport is not None
    assert transport.path == path
    assert gateway.udp.transport_for(path) is transport
    transport.send(IKE)
    assert peer.recvfrom(2000) == (IKE, ("127.0.0.1", gateway.udp.address.port))


@pytest.mark.parametrize("ip", ENDS.values(), ids=ENDS)
async def test_a_path_and_a_datagram_give_the_same_transport(
    closing: Callable[..., None], ip: str
) -> None:
    gateway = Gateway(ip)
    peer = plain(gateway.udp.address, ip)
    closing(gateway.udp, peer)
    peer.send(IKE)
    await until(lambda: gateway.got)
    [sender] = gateway.senders
    assert gateway.udp.transport_for(sender.path) is sender


async def test_a_listener_disowns_paths_that_do_not_lead_through_it(
    closing: Callable[..., None],
) -> None:
    gateway = Gateway()
    closing(gateway.udp)
    ours = Path(gateway.udp.address, local(4500, "127.0.0.9"), Carrier.UDP)
    port = gateway.udp.address.port
    for path in (
        replace(ours, carrier=Carrier.TCP),
        replace(ours, has_marker=False),
        replace(ours, local=local(port + 1)),
        replace(ours, local=local(port, "127.0.0.2")),
        replace(ours, local=local(port, "::1"), peer=local(4500, "::1")),
    ):
        assert gateway.udp.transport_for(path) is None
    assert gateway.udp.transport_for(ours) is not None
    gateway.udp.close()
    assert gateway.udp.transport_for(ours) is None


async def test_strangers_push_out_the_longest_silent_path_but_do_not_break_it(
    closing: Callable[..., None],
) -> None:
    gateway = Gateway()
    peer = plain(gateway.udp.address)
    closing(gateway.udp, peer)
    peer.send(IKE)
    await until(lambda: gateway.got)
    first = gateway.senders[0]
    for number in range(MAX_PEERS):
        stranger = local(1 + number, "127.0.0.7")
        gateway.udp.transport_for(replace(first.path, peer=stranger))
    assert gateway.udp.transport_for(first.path) is not first
    first.send(b"still works")
    assert peer.recv(2000) == b"still works"


async def test_a_port_that_is_taken(closing: Callable[..., None]) -> None:
    gateway = Gateway()
    closing(gateway.udp)
    with pytest.raises(TransportError, match=f"UDP {gateway.udp.address}: address already in use"):
        Gateway(port=gateway.udp.address.port)


async def test_the_port_here_is_the_port_there_if_it_is_free(closing: Callable[..., None]) -> None:
    with plain() as probe:
        port = address_of(probe).port
    free = client(local(port, "127.0.0.3"), Owner())
    taken = client(local(port, "127.0.0.3"), Owner())
    closing(free, taken)
    assert free.path.local.port == port
    assert taken.path.local.port != port


async def test_after_close_everything_vanishes() -> None:
    gateway, owner = Gateway(), Owner()
    transport = client(gateway.udp.address, owner)
    transport.send(IKE)
    await until(lambda: gateway.got)
    back = gateway.senders[0]
    back.close()
    back.send(IKE)
    assert back.send_esp(*train([esp(1)])) == 1
    assert gateway.udp.transport_for(back.path) is not back
    transport.close()
    transport.close()
    transport.send(IKE)
    assert transport.is_congested
    gateway.udp.close()
    await asyncio.sleep(0.01)
    assert not owner.got
    assert not owner.errors


# --- ICMP --------------------------------------------------------------------------------------


async def test_a_refusal_is_told_and_closes_nothing(closing: Callable[..., None]) -> None:
    with plain() as probe:
        nobody = address_of(probe)
    owner = Owner()
    transport = client(nobody, owner)
    closing(transport)
    transport.send(IKE)
    await until(lambda: owner.errors)
    assert isinstance(owner.errors[0], ConnectFailed)
    assert str(owner.errors[0]) == "connection refused"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as somebody:
        somebody.settimeout(PATIENCE_S)
        somebody.bind((str(nobody.ip), nobody.port))
        transport.send(IKE)
        assert somebody.recv(2000) == IKE
    told = len(owner.errors)
    await asyncio.sleep(0.02)
    assert len(owner.errors) == told


async def test_what_a_refusal_hit_is_sent_all_the_same(closing: Callable[..., None]) -> None:
    """The system tells an ICMP error to the next call, which then sends nothing."""
    with plain() as probe:
        address = address_of(probe)
    owner = Owner()
    transport = client(address, owner)
    closing(transport)
    transport.send(b"lost")
    somebody = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    closing(somebody)
    somebody.settimeout(PATIENCE_S)
    somebody.bind((str(address.ip), address.port))
    transport.send(IKE)
    assert somebody.recv(2000) == IKE
    assert not owner.errors  # only from the loop
    await until(lambda: owner.errors)
    assert str(owner.errors[0]) == "connection refused"


# --- trains ------------------------------------------------------------------------------------

MIXED = [*([1472] * 70), 900, 1472, 1472, 100, 200, 200, 8, *([48] * 130)]


@pytest.mark.parametrize("joins", [True, False], ids=["gro", "no-gro"])
async def test_trains_arrive_packet_by_packet(closing: Callable[..., None], *, joins: bool) -> None:
    gateway = Gateway()
    receiver = plain(ip="127.0.0.2")
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    closing(gateway.udp, receiver)
    packets = [esp(number, size) for number, size in enumerate(MIXED)]
    if joins:
        transport = client(gateway.udp.address, Owner())
        closing(transport)
        assert transport.send_esp(*train(packets)) == 0
        await until(lambda: len(gateway.got) == len(packets))
        assert gateway.got == packets
        assert len(gateway.batches) == 1
    else:
        transport = client(address_of(receiver), Owner())
        closing(transport)
        assert transport.send_esp(*train(packets)) == 0
        assert [receiver.recv(65536) for _ in packets] == packets


async def test_runs_leave_in_one_call(closing: Callable[..., None]) -> None:
    """A receiver that asks for joined datagrams sees the runs as they were sent."""
    receiver = plain()
    receiver.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    transport = client(address_of(receiver), Owner())
    closing(receiver, transport)
    transport.send_esp(*train([esp(number, 1000) for number in range(130)]))
    lengths = [len(receiver.recv(65536)) for _ in range(3)]
    assert lengths == [64000, 64000, 2000]
    transport.send_esp(*train([esp(number, 1472) for number in range(50)]))
    assert [len(receiver.recv(65536)) for _ in range(2)] == [44 * 1472, 6 * 1472]


async def test_where_the_system_refuses_to_cut_packets_leave_one_by_one(
    closing: Callable[..., None],
) -> None:
    receiver, sock = plain(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)  # with it, UDP_SEGMENT is refused
    sock.connect(receiver.getsockname())
    transport, owner = connected(sock, address_of(receiver))
    closing(receiver, transport)
    packets = [esp(number) for number in range(20)]
    for _ in range(2):
        assert transport.send_esp(*train(packets)) == 0
        assert [receiver.recv(65536) for _ in packets] == packets
    assert not owner.errors


async def test_what_cannot_leave_is_counted(closing: Callable[..., None]) -> None:
    with plain() as receiver:
        transport = client(address_of(receiver), Owner())
        closing(transport)
        too_long = esp(2, 65530)
        assert transport.send_esp(*train([esp(1), too_long, esp(3)])) == 2
        assert receiver.recv(65536) == esp(1)


async def test_max_datagram_follows_the_route(closing: Callable[..., None]) -> None:
    gateway = Gateway()
    transport = client(gateway.udp.address, Owner())
    closing(gateway.udp, transport)
    assert transport.max_datagram == 65507
    transport.send(IKE)
    await until(lambda: gateway.got)
    assert gateway.senders[0].max_datagram == 65507
    unreachable = replace(gateway.senders[0].path, peer=local(4500, "0.0.0.1"))
    lost = gateway.udp.transport_for(unreachable)
    assert lost is not None
    assert lost.max_datagram == 1252
    lost.send(IKE)
    assert lost.send_esp(*train([esp(1), esp(2)])) == 2


async def test_a_large_ike_message_may_be_fragmented(closing: Callable[..., None]) -> None:
    gateway = Gateway()
    transport = client(gateway.udp.address, Owner())
    closing(gateway.udp, transport)
    transport.send(bytes(65507))
    await until(lambda: gateway.got)
    assert gateway.got == [bytes(65507)]
