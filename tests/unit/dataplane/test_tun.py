"""The TUN's descriptor: batches of packets with their header, and what goes wrong."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.dataplane.samples import drain, pair_of_packet_sockets
from tunnelwrap.dataplane.tun import MAX_READ, Tun
from tunnelwrap.errors import DataPlaneError


@pytest.fixture
def ends() -> Iterator[tuple[Tun, socket.socket]]:
    plane, host = pair_of_packet_sockets()
    tun = Tun(plane.detach(), "tun-test")
    yield tun, host
    tun.close()
    host.close()


def test_packets_are_read_until_none_is_left(ends: tuple[Tun, socket.socket]) -> None:
    tun, host = ends
    arena = memoryview(bytearray(3 * MAX_READ))
    packets = [bytes([n]) * (n * 7 + 20) for n in range(5)]
    for packet in packets:
        host.send(packet)
    spans = tun.read_batch(arena, 64)
    assert [bytes(arena[start:end]) for start, end in spans] == packets
    assert all(start % 2 == 0 for start, _ in spans)
    assert tun.read_batch(arena, 64) == []


def test_a_batch_is_bounded_by_number_and_room(ends: tuple[Tun, socket.socket]) -> None:
    tun, host = ends
    for _ in range(4):
        host.send(bytes(65000))
    arena = memoryview(bytearray(2 * MAX_READ))
    assert len(tun.read_batch(arena, 1)) == 1
    assert len(tun.read_batch(arena, 64)) == 2
    assert len(tun.read_batch(arena, 64)) == 1


def test_a_packet_is_written_in_one_piece(ends: tuple[Tun, socket.socket]) -> None:
    tun, host = ends
    assert tun.write([b"head", memoryview(b"body"), b"tail"])
    assert drain(host) == [b"headbodytail"]


def test_what_is_not_taken_is_no_error(ends: tuple[Tun, socket.socket]) -> None:
    tun, host = ends
    host.close()
    assert not tun.write([b"packet"])


def test_a_device_that_is_gone_is_an_error(ends: tuple[Tun, socket.socket]) -> None:
    tun, _ = ends
    tun.close()
    tun.close()
    assert tun.fileno() == -1
    with pytest.raises(DataPlaneError, match="tun-test"):
        tun.read_batch(memoryview(bytearray(MAX_READ)), 1)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_real_device_speaks_the_virtio_header() -> None:
    tun = Tun.open("twtest%d")
    try:
        assert tun.name.startswith("twtest")
        assert Path("/sys/class/net", tun.name).exists()
        with pytest.raises(DataPlaneError, match=tun.name):
            Tun.open(tun.name)
        assert not tun.write([bytes(10), bytes(20)])  # the device is down
    finally:
        tun.close()
    assert not Path("/sys/class/net", tun.name).exists()
