"""Every suite that the kernel has, by the name and with the key that it takes."""

import socket
from ipaddress import ip_address

import pytest

from tests.kernel.iproute import ip
from tests.unit.dataplane.samples import SUITES, keys_of, suite_of, udp
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.dataplane.esp import IPV4, OutboundSa
from tunnelwrap.dataplane.netlink import XfrmSocket
from tunnelwrap.dataplane.xfrm_suite import DEFLATE, INTEGRITIES, ah_algorithms, esp_algorithms
from tunnelwrap.dataplane.xfrm_values import (
    Algorithm,
    Algorithms,
    Encapsulation,
    KernelSa,
    Proto,
    Replay,
    SaFailures,
    SaId,
    XfrmMode,
)
from tunnelwrap.iana import Integ
from tunnelwrap.ike.child_sa import SaKeys

pytestmark = pytest.mark.kernel

HERE = ip_address("127.0.0.1")
SPI = 0x1000
UDP_ENCAP, ESPINUDP = 100, 2
ADD = f"xfrm state add src 127.0.0.1 dst 127.0.0.1 proto {{}} spi {SPI:#x} mode tunnel"

# By RFC name: the kernel's, the length of the key in octets (with the salt), of the ICV in bits.
AEADS = {
    "aes128gcm16": ("rfc4106(gcm(aes))", 20, 128),
    "aes192gcm16": ("rfc4106(gcm(aes))", 28, 128),
    "aes256gcm16": ("rfc4106(gcm(aes))", 36, 128),
    "aes128ccm8": ("rfc4309(ccm(aes))", 19, 64),
    "aes256ccm16": ("rfc4309(ccm(aes))", 35, 128),
    "aes128gmac": ("rfc4543(gcm(aes))", 20, 128),
    "aes256gmac": ("rfc4543(gcm(aes))", 36, 128),
    "chacha20poly1305": ("rfc7539esp(chacha20,poly1305)", 36, 128),
}
PAIRS = {
    "aes128-sha1": ("cbc(aes)", 16, "hmac(sha1)", 20, 96),
    "aes128-aesxcbc": ("cbc(aes)", 16, "xcbc(aes)", 16, 96),
    "aes128-sha256": ("cbc(aes)", 16, "hmac(sha256)", 32, 128),
    "aes192-sha384": ("cbc(aes)", 24, "hmac(sha384)", 48, 192),
    "aes256-sha512": ("cbc(aes)", 32, "hmac(sha512)", 64, 256),
    "aes128ctr-sha256": ("rfc3686(ctr(aes))", 20, "hmac(sha256)", 32, 128),
    "aes256ctr-sha256": ("rfc3686(ctr(aes))", 36, "hmac(sha256)", 32, 128),
    "null-sha256": ("ecb(cipher_null)", 0, "hmac(sha256)", 32, 128),
}


def sa_of(
    algorithms: Algorithms, *, proto: Proto = Proto.ESP, encap: Encapsulation | None = None
) -> KernelSa:
    return KernelSa(
        id=SaId(HERE, SPI, proto),
        source=HERE,
        mode=XfrmMode.TUNNEL,
        algorithms=algorithms,
        replay=Replay(window=0 if proto is Proto.COMP else 32),
        encapsulation=encap,
    )


def as_hex(secret: Secret) -> str:
    return f"0x{secret.reveal().hex()}" if len(secret) else ""


def words(algorithm: str, name: str, key: Secret, bits: int | None = None) -> str:
    """An algorithm as ``ip xfrm state`` prints it."""
    return " ".join(filter(None, [algorithm, name, as_hex(key), bits and str(bits)]))


def quoted(algorithm: str, name: str, key: Secret, bits: int | None = None) -> str:
    """An algorithm as ``ip xfrm state add`` takes it."""
    return f"{algorithm} '{name}' '{as_hex(key)}' {bits or ''}"


def esp_sa(suite: str) -> tuple[KernelSa, SaKeys]:
    chosen = suite_of(suite, uses_esn=False)
    keys = keys_of(chosen)
    return sa_of(esp_algorithms(chosen, keys)), keys


@pytest.mark.parametrize("suite", AEADS)
def test_an_aead_is_written_and_read_as_by_ip_xfrm(xfrm: XfrmSocket, suite: str) -> None:
    sa, keys = esp_sa(suite)
    name, key_length, icv_bits = AEADS[suite]
    assert len(keys.encryption) == key_length
    xfrm.add_sa(sa)
    assert words("aead", name, keys.encryption, icv_bits) in ip("xfrm state")
    xfrm.delete_sa(sa.id)
    aead = quoted("aead", name, keys.encryption, icv_bits)
    ip(f"{ADD.format('esp')} replay-window 32 flag af-unspec {aead}")
    assert xfrm.sas() == [sa]


@pytest.mark.parametrize("suite", PAIRS)
def test_encryption_and_integrity_are_written_and_read_as_by_ip_xfrm(
    xfrm: XfrmSocket, suite: str
) -> None:
    sa, keys = esp_sa(suite)
    cipher, cipher_length, mac, mac_length, icv_bits = PAIRS[suite]
    assert (len(keys.encryption), len(keys.integrity)) == (cipher_length, mac_length)
    xfrm.add_sa(sa)
    told = ip("xfrm state")
    assert words("auth-trunc", mac, keys.integrity, icv_bits) in told
    assert words("enc", cipher, keys.encryption) in told
    xfrm.delete_sa(sa.id)
    encryption = quoted("enc", cipher, keys.encryption)
    integrity = quoted("auth-trunc", mac, keys.integrity, icv_bits)
    ip(f"{ADD.format('esp')} replay-window 32 flag af-unspec {integrity} {encryption}")
    assert xfrm.sas() == [sa]


@pytest.mark.parametrize("icv_bits", [64, 96])
@pytest.mark.parametrize("name", ["rfc4106(gcm(aes))", "rfc4309(ccm(aes))"])
def test_shorter_icvs_are_told_too(xfrm: XfrmSocket, name: str, icv_bits: int) -> None:
    key = Secret(bytes(range(20 if "gcm" in name else 19)))
    sa = sa_of(Algorithms(aead=Algorithm(name, key, icv_bits)))
    xfrm.add_sa(sa)
    assert words("aead", name, key, icv_bits) in ip("xfrm state")
    assert xfrm.sas() == [sa]


@pytest.mark.parametrize("suite", SUITES)
def test_what_our_own_esp_seals_the_kernel_opens(xfrm: XfrmSocket, suite: str) -> None:
    chosen = suite_of(suite, uses_esn=False)
    keys = keys_of(chosen)
    with (
        socket.socket(type=socket.SOCK_DGRAM) as kernels,
        socket.socket(type=socket.SOCK_DGRAM) as ours,
    ):
        kernels.bind(("127.0.0.1", 0))
        kernels.setsockopt(socket.IPPROTO_UDP, UDP_ENCAP, ESPINUDP)
        ours.connect(kernels.getsockname())
        encap = Encapsulation(ours.getsockname()[1], kernels.getsockname()[1])
        sa = sa_of(esp_algorithms(chosen, keys), encap=encap)
        xfrm.add_sa(sa)
        ours.send(sealed(OutboundSa(SPI, chosen, keys, uses_esn=False), udp(100)))
    now = xfrm.find_sa(sa.id)
    assert now is not None
    assert (now.usage.packets, now.failures) == (1, SaFailures())
    assert (now.replay.inbound, now.replay.seen) == (1, 1)


def sealed(sa: OutboundSa, packet: bytes) -> bytes:
    """One ESP packet."""
    arena = bytearray(sa.slot(len(packet)))
    arena[sa.head : sa.head + len(packet)] = packet
    sa.seal_batch(memoryview(arena), 0, (1, len(packet), IPV4), [])
    return bytes(arena[2:])  # without the length of RFC 9329


@pytest.mark.parametrize("integ", INTEGRITIES)
def test_ah_is_written_and_read_as_by_ip_xfrm(xfrm: XfrmSocket, integ: int) -> None:
    keys, icv_length = {
        Integ.HMAC_SHA1_96: (20, 12),
        Integ.AES_XCBC_96: (16, 12),
        Integ.HMAC_SHA2_256_128: (32, 16),
        Integ.HMAC_SHA2_384_192: (48, 24),
        Integ.HMAC_SHA2_512_256: (64, 32),
    }[Integ(integ)]
    key = Secret(bytes(range(keys)))
    sa = sa_of(ah_algorithms(integ, SaKeys(Secret(b""), key), icv_length), proto=Proto.AH)
    xfrm.add_sa(sa)
    assert words("auth-trunc", INTEGRITIES[integ], key, icv_length * 8) in ip("xfrm state")
    xfrm.delete_sa(sa.id)
    integrity = quoted("auth-trunc", INTEGRITIES[integ], key, icv_length * 8)
    ip(f"{ADD.format('ah')} replay-window 32 flag af-unspec {integrity}")
    assert xfrm.sas() == [sa]


def test_compression_is_written_and_read_as_by_ip_xfrm(xfrm: XfrmSocket) -> None:
    sa = sa_of(DEFLATE, proto=Proto.COMP)
    xfrm.add_sa(sa)
    assert "comp deflate" in ip("xfrm state")
    xfrm.delete_sa(sa.id)
    ip(f"{ADD.format('comp')} flag af-unspec comp deflate")
    assert xfrm.find_sa(sa.id) == sa
