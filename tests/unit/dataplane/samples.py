"""Child SAs, keys and inner packets for the tests of the data plane."""

import socket
from ipaddress import ip_network

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet

from tests.kit.carriers import path_of
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.suite import AhSuite, ChildSuite, EspSuite
from tunnelwrap.iana import Encr, Integ
from tunnelwrap.ike.child_sa import ChildSa, Cpis, Mode, SaKeys, SaLimits
from tunnelwrap.path import Carrier
from tunnelwrap.wire.payloads import TrafficSelector

NO_LIMITS = SaLimits(None, None, None, None)
NEAR, FAR = "10.1.0.1", "10.2.0.1"
NEAR_6, FAR_6 = "fd01::1", "fd02::1"

SUITES = {
    "aes128gcm16": (Encr.AES_GCM_16, 128, None),
    "aes192gcm16": (Encr.AES_GCM_16, 192, None),
    "aes256gcm16": (Encr.AES_GCM_16, 256, None),
    "chacha20poly1305": (Encr.CHACHA20_POLY1305, None, None),
    "aes128-sha256": (Encr.AES_CBC, 128, Integ.HMAC_SHA2_256_128),
    "aes192-sha384": (Encr.AES_CBC, 192, Integ.HMAC_SHA2_384_192),
    "aes256-sha512": (Encr.AES_CBC, 256, Integ.HMAC_SHA2_512_256),
    "aes128-sha1": (Encr.AES_CBC, 128, Integ.HMAC_SHA1_96),
    "aes128-aesxcbc": (Encr.AES_CBC, 128, Integ.AES_XCBC_96),
    "aes128ctr-sha256": (Encr.AES_CTR, 128, Integ.HMAC_SHA2_256_128),
    "aes256ctr-sha256": (Encr.AES_CTR, 256, Integ.HMAC_SHA2_256_128),
    "aes256ctr-sha1": (Encr.AES_CTR, 256, Integ.HMAC_SHA1_96),
    "aes128ccm8": (Encr.AES_CCM_8, 128, None),
    "aes256ccm16": (Encr.AES_CCM_16, 256, None),
    "null-sha256": (Encr.NULL, None, Integ.HMAC_SHA2_256_128),
    "null-aesxcbc": (Encr.NULL, None, Integ.AES_XCBC_96),
    "aes128gmac": (Encr.NULL_AUTH_AES_GMAC, 128, None),
    "aes256gmac": (Encr.NULL_AUTH_AES_GMAC, 256, None),
}


AH_SUITES = {
    "ah-sha1": Integ.HMAC_SHA1_96,
    "ah-aesxcbc": Integ.AES_XCBC_96,
    "ah-sha256": Integ.HMAC_SHA2_256_128,
    "ah-sha384": Integ.HMAC_SHA2_384_192,
    "ah-sha512": Integ.HMAC_SHA2_512_256,
}


def suite_of(name: str, *, uses_esn: bool = True) -> EspSuite:
    """A suite by its strongSwan name."""
    encr, key_bits, integ = SUITES[name]
    return EspSuite(encr, key_bits, integ, None, uses_esn)


def child_suite_of(name: str, *, uses_esn: bool = True) -> ChildSuite:
    """The same, or one of AH."""
    if name in AH_SUITES:
        return AhSuite(AH_SUITES[name], None, uses_esn)
    return suite_of(name, uses_esn=uses_esn)


def keys_of(suite: ChildSuite, seed: int = 1) -> SaKeys:
    """Keys of the lengths that a suite needs."""
    encryption = bytes((seed + n) & 0xFF for n in range(suite.encryption_key_length))
    integrity = bytes((seed + 100 + n) & 0xFF for n in range(suite.integrity_key_length))
    return SaKeys(Secret(encryption), Secret(integrity))


def selectors(*networks: str, protocol: int = 0, ports: tuple[int, int] = (0, 65535)) -> tuple:
    """Traffic selectors for networks."""
    first, last = ports
    return tuple(
        TrafficSelector.from_network(ip_network(network), protocol, first, last)
        for network in networks
    )


def child_of(
    side: int = 0,
    *,
    suite: str = "aes128gcm16",
    uses_esn: bool = True,
    spi: int = 0x1000,
    local: tuple | None = None,
    peer: tuple | None = None,
    limits: SaLimits = NO_LIMITS,
    mode: Mode = Mode.TUNNEL,
    is_compressed: bool = False,
    is_bare: bool = False,
) -> ChildSa:
    """One side (0 near, 1 far) of a pair of SAs; ``local`` and ``peer`` as the near side says.

    The CPIs are the SPIs.
    """
    chosen = child_suite_of(suite, uses_esn=uses_esn)
    ends = [
        local or selectors("10.1.0.0/16", "fd01::/16"),
        peer or selectors("10.2.0.0/16", "fd02::/16"),
    ]
    keys = [keys_of(chosen, 1), keys_of(chosen, 50)]
    return ChildSa(
        name="test",
        peer="peer",
        spi_in=spi + side,
        spi_out=spi + 1 - side,
        suite=chosen,
        keys_in=keys[side],
        keys_out=keys[1 - side],
        uses_esn=uses_esn,
        mode=mode,
        ts_local=ends[side],
        ts_peer=ends[1 - side],
        path=path_of(Carrier.UDP),
        replay_window=1024,
        limits=limits,
        cpis=Cpis(spi + side, spi + 1 - side) if is_compressed else None,
        is_bare=is_bare,
    )


def octets(packet: Packet) -> memoryview:
    """A packet as it stands in a buffer."""
    return memoryview(bytearray(bytes(packet)))


def udp(size: int = 100, source: str = NEAR, destination: str = FAR, **fields: object) -> bytes:
    """A UDP packet over IPv4 or IPv6 with ``size`` octets of payload."""
    layer = IPv6 if ":" in source else IP
    network = layer(src=source, dst=destination, **fields)
    return bytes(network / UDP(sport=1000, dport=2000) / bytes(n & 0xFF for n in range(size)))


def tcp(
    payload: bytes, sequence: int, source: str = NEAR, destination: str = FAR, **fields: object
) -> bytes:
    """A TCP segment with the timestamp option."""
    values = {"sport": 1000, "dport": 2000, "ack": 77, "flags": "A", "window": 500, **fields}
    network = {name: values.pop(name) for name in ("id", "ttl", "tos", "tc") if name in values}
    layer = IPv6 if ":" in source else IP
    options = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]
    head = layer(src=source, dst=destination, **network)
    if layer is IP:
        head.flags = "DF"
    return bytes(head / TCP(seq=sequence, options=options, **values) / payload)


def with_right_sums(packet: bytes) -> bytes:
    """The packet with the checksums that scapy computes."""
    parsed = (IP if packet[0] >> 4 == 4 else IPv6)(packet)
    for layer in (IP, TCP, UDP):
        if parsed.haslayer(layer):
            del parsed[layer].chksum
    return bytes(parsed)


def pair_of_packet_sockets() -> tuple[socket.socket, socket.socket]:
    """Two sockets that keep packets apart, as a TUN does: one for the plane, one for the test."""
    plane, host = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for end in (plane, host):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    host.setblocking(False)
    return plane, host


def drain(host: socket.socket) -> list[bytes]:
    """All packets that wait in a socket."""
    found = []
    while True:
        try:
            found.append(host.recv(1 << 17))
        except BlockingIOError:
            return found
