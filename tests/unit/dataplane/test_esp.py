"""ESP: suites against RFC packets and scapy, sequence numbers, replay, and what must be refused."""

import hmac
import struct
from collections import Counter
from struct import Struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP, SecurityAssociation

from tests.kit.carriers import packets_of
from tests.kit.crypto_vectors import load, names
from tests.unit.dataplane.samples import NEAR, NEAR_6, SUITES, keys_of, suite_of, udp
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.xcbc import Xcbc
from tunnelwrap.dataplane.esp import (
    BY_COLUMN,
    IPV4,
    IPV6,
    STRETCH,
    InboundSa,
    OutboundSa,
    ReplayWindow,
    Run,
    inner_limit,
)
from tunnelwrap.errors import Unsupported, UsageError
from tunnelwrap.iana import Encr, Integ
from tunnelwrap.ike.child_sa import SaKeys

SPI = 0xC0FFEE01
# those for whose keys the samples have a suite
CTR = [case for case in load("rfc3686") if len(case["key"]) in {20, 36}]
SCAPY = {
    Encr.AES_GCM_16: "AES-GCM",
    Encr.CHACHA20_POLY1305: "CHACHA20-POLY1305",
    Encr.AES_CBC: "AES-CBC",
    Encr.AES_CTR: "AES-CTR",
    Encr.AES_CCM_8: "AES-CCM",
    Encr.AES_CCM_16: "AES-CCM",
    Encr.NULL: "NULL",
    Encr.NULL_AUTH_AES_GMAC: "AES-NULL-GMAC",
}
SCAPY_AUTH = {
    None: None,
    Integ.HMAC_SHA1_96: "HMAC-SHA1-96",
    Integ.HMAC_SHA2_256_128: "SHA2-256-128",
    Integ.HMAC_SHA2_384_192: "SHA2-384-192",
    Integ.HMAC_SHA2_512_256: "SHA2-512-256",
}
SCAPY_SUITES = [name for name, suite in SUITES.items() if suite[2] in SCAPY_AUTH]  # no XCBC there
each_suite = pytest.mark.parametrize("name", SUITES)
each_suite_of_scapy = pytest.mark.parametrize("name", SCAPY_SUITES)
with_and_without_esn = pytest.mark.parametrize("uses_esn", [False, True], ids=["noesn", "esn"])


class Box:
    """An outbound and an inbound SA with the same keys, and their buffers."""

    def __init__(
        self, name: str = "aes128gcm16", *, uses_esn: bool = True, window: int = 64
    ) -> None:
        self.suite = suite_of(name, uses_esn=uses_esn)
        keys = keys_of(self.suite)
        self.drops: Counter[str] = Counter()
        self.window = ReplayWindow(window, uses_esn=uses_esn)
        self.outbound = OutboundSa(SPI, self.suite, keys, uses_esn=uses_esn)
        self.inbound = InboundSa(
            SPI, self.suite, keys, self.window, uses_esn=uses_esn, drops=self.drops
        )
        self.arena = memoryview(bytearray(1 << 18))

    def jump(self, sequence: int) -> None:
        """Let both ends be at a sequence number."""
        self.outbound.skip_to(sequence)
        self.window.advance(sequence - self.window.top)

    def seal(self, *packets: bytes, next_header: int = IPV4) -> list[bytes]:
        """ESP packets for inner packets of one length."""
        outbox, ends = memoryview(bytearray(1 << 18)), []
        length, slot = len(packets[0]), self.outbound.slot(len(packets[0]))
        for number, packet in enumerate(packets):
            start = number * slot + self.outbound.head
            outbox[start : start + length] = packet
        sealed = self.outbound.seal_batch(outbox, 0, (len(packets), length, next_header), ends)
        assert sealed == len(ends)
        return [bytes(packet) for packet in packets_of(outbox[: ends[-1] if ends else 0], ends)]

    def open(self, *packets: bytes) -> list[bytes]:
        """The plaintexts of what was opened."""
        runs: list[Run] = []
        batch = [memoryview(packet) for packet in packets]
        assert self.inbound.open_batch(batch, 0, self.arena, runs) == len(batch)
        return self.plaintexts(runs)

    def plaintexts(self, runs: list[Run]) -> list[bytes]:
        """What the runs describe."""
        return [
            bytes(self.arena[start : start + length])
            for offset, count, length, stride in runs
            for start in range(offset, offset + count * stride, stride)
        ]


def messages(count: int, size: int = 100) -> list[bytes]:
    """Inner "packets" of one length that differ."""
    return [number.to_bytes(2, "big") * (size // 2) for number in range(count)]


def inners(plaintexts: list[bytes], size: int = 100) -> list[bytes]:
    return [plaintext[:size] for plaintext in plaintexts]


@each_suite
@with_and_without_esn
@pytest.mark.parametrize("count", [1, BY_COLUMN, 3 * STRETCH + 5])
def test_what_is_sealed_opens(name: str, *, uses_esn: bool, count: int) -> None:
    box = Box(name, uses_esn=uses_esn)
    sent = messages(count)
    assert inners(box.open(*box.seal(*sent))) == sent
    assert box.window.top == box.outbound.sequence == count
    assert not box.drops


@each_suite
@pytest.mark.parametrize("size", range(20, 53))
def test_trailer_is_self_describing_and_aligned(name: str, size: int) -> None:
    """RFC 4303 §2.4: padding 1, 2, 3, .., pad length, next header; right aligned."""
    box = Box(name)
    (packet,) = box.seal(bytes(size), next_header=IPV6)
    (plaintext,) = box.open(packet)
    pad = plaintext[-2]
    assert plaintext == bytes(size) + bytes(range(1, pad + 1)) + bytes((pad, IPV6))
    assert len(plaintext) % max(4, box.suite.block_size) == 0
    assert len(packet) == box.outbound.slot(size) - 2


def scapy_sa(box: Box, *, uses_esn: bool, tunnel: IP | IPv6) -> SecurityAssociation:
    keys = keys_of(box.suite)
    return SecurityAssociation(
        ESP,
        spi=SPI,
        crypt_algo=SCAPY[box.suite.encr],
        crypt_key=keys.encryption.reveal() or None,
        crypt_icv_size=box.suite.icv_length if box.suite.is_aead else None,
        auth_algo=SCAPY_AUTH[box.suite.integ],
        auth_key=keys.integrity.reveal() or None,
        tunnel_header=tunnel,
        esn_en=uses_esn,
    )


@pytest.mark.rfc("4303", "3.3.2.1")
@pytest.mark.rfc("4303", "3.3.2.2")
@each_suite_of_scapy
@with_and_without_esn
@pytest.mark.parametrize("count", [1, BY_COLUMN + 1])
def test_scapy_opens_what_we_seal(name: str, *, uses_esn: bool, count: int) -> None:
    high = 5 if uses_esn else 0
    box, inner = Box(name, uses_esn=uses_esn), udp(301)
    box.jump((high << 32) + 7)
    outer = IP(src="192.0.2.1", dst="192.0.2.2")
    peer = scapy_sa(box, uses_esn=uses_esn, tunnel=outer)
    for number, packet in enumerate(box.seal(*[inner] * count)):
        assert struct.unpack(">II", packet[:8]) == (SPI, 8 + number)
        opened = peer.decrypt(IP(bytes(outer / ESP(packet))), esn=high)
        assert bytes(opened) == inner


@pytest.mark.rfc("4303", "3.4.4.1")
@pytest.mark.rfc("4303", "3.4.4.2")
@each_suite_of_scapy
@with_and_without_esn
@pytest.mark.parametrize("source", [NEAR, NEAR_6])
def test_we_open_what_scapy_seals(name: str, *, uses_esn: bool, source: str) -> None:
    high = 5 if uses_esn else 0
    box = Box(name, uses_esn=uses_esn)
    box.window.advance(high << 32)
    peer = scapy_sa(box, uses_esn=uses_esn, tunnel=IP(src="192.0.2.1", dst="192.0.2.2"))
    inner = udp(77, source, source)
    parsed = IPv6(inner) if ":" in source else IP(inner)
    sealed = [
        bytes(peer.encrypt(parsed, seq_num=number, esn=high)[ESP])
        for number in range(1, BY_COLUMN + 3)
    ]
    opened = box.open(*sealed)
    assert inners(opened, len(inner)) == [inner] * len(sealed)
    assert {plaintext[-1] for plaintext in opened} == {41 if ":" in source else 4}


def opened_by(suite_name: str, keys: SaKeys, spi: int, packet: bytes) -> bytes:
    drops: Counter[str] = Counter()
    window = ReplayWindow(64, uses_esn=False)
    suite = suite_of(suite_name, uses_esn=False)
    inbound = InboundSa(spi, suite, keys, window, uses_esn=False, drops=drops)
    arena, runs = memoryview(bytearray(1 << 17)), []
    assert inbound.open_batch([memoryview(packet)], 0, arena, runs) == 1
    ((offset, packets, length, _),) = runs
    assert packets == 1
    return bytes(arena[offset : offset + length])


@pytest.mark.rfc("7634", "A")
def test_chacha20_poly1305_packet_of_rfc_7634() -> None:
    keys = SaKeys(Secret(bytes(range(0x80, 0xA4))), Secret(b""))
    packet = bytes.fromhex(
        "01020304000000051011121314151617240394 28b97f417e3c13753a4f05087b67c352e6a7fab1b982d466ef"
        "407ae5c614ee8099d52844eb61aa95dfab4c02f72aa71e7c4c4f64c9befe2facc638e8f3cbec163fac469b50"
        "2773f6fb94e664da9165b82829f641e076aaa8266b7fb0f7b11b369907e1ad43"
    )
    source = bytes.fromhex(
        "45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec1000073627"
        "08090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f"
        "3031323334353637"
    )
    opened = opened_by("chacha20poly1305", keys, 0x01020304, packet)
    assert opened == source + b"\x01\x02\x02\x04"


@pytest.mark.rfc("3602", "4")
def test_aes_cbc_packet_of_rfc_3602_case_8() -> None:
    """The RFC's packet has no ICV: the one of HMAC-SHA2-256-128 is put behind it."""
    keys = SaKeys(Secret(bytes.fromhex("0123456789abcdef" * 2)), Secret(bytes(32)))
    packet = bytes.fromhex(
        "000087650000000585d47224b5f3dd5d2101d4ea8dffab22"
        "15b92683819596a8047232cc00f7048fe45318e11f8a0f62ede3c3fc61203bb5"
        "0f980a08c9843fd3a1b06d5c07ff9639b7eb7dfb3512e5de435e7207ed971ef3"
        "d2726d9b5ef6affc6d17a0decbb13892"
    )
    packet += hmac.digest(bytes(32), packet, "sha256")[:16]
    plain = bytes.fromhex(
        "45000044090c00004001f990c0a87b03c0a87bc80800d63caa0a0200c69c083d"
        "a3de0300ffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
        "ffffffff0102030405060708090a0a04"
    )
    assert opened_by("aes128-sha256", keys, 0x8765, packet) == plain


def sealed_by(suite_name: str, keys: SaKeys, sequence: int, inner: bytes) -> bytes:
    """One packet of an outbound SA that has come to a sequence number."""
    outbound = OutboundSa(SPI, suite_of(suite_name, uses_esn=False), keys, uses_esn=False)
    outbound.skip_to(sequence - 1)
    # an arena that ends where the slot does: nothing is written behind it
    arena, ends = memoryview(bytearray(outbound.slot(len(inner)))), []
    arena[outbound.head : outbound.head + len(inner)] = inner
    assert outbound.seal_batch(arena, 0, (1, len(inner), IPV4), ends) == 1
    return bytes(arena[2:])


@pytest.mark.rfc("3686", "6")
@pytest.mark.parametrize("case", CTR, ids=names(CTR))
def test_aes_ctr_vectors_of_rfc_3686(case: dict) -> None:
    """The RFC's ciphertexts with an ESP header before and an ICV behind."""
    keys = SaKeys(Secret(case["key"]), Secret(bytes(32)))
    packet = struct.pack(">II", SPI, 1) + case["iv"] + case["ciphertext"]
    packet += hmac.digest(bytes(32), packet, "sha256")[:16]
    name = {20: "aes128ctr-sha256", 36: "aes256ctr-sha256"}[len(case["key"])]
    assert opened_by(name, keys, SPI, packet) == case["plaintext"]


@pytest.mark.rfc("4543", "3")
def test_gmac_packet() -> None:
    """draft-mcgrew-gcm-test-01, as in the Linux kernel's tests of rfc4543; the IV there is 0."""
    keys = SaKeys(Secret(bytes.fromhex("4c80cdefbb5d10da906ac73c3613a63422433c64")), Secret(b""))
    plain = bytes.fromhex(
        "45000030da3a00008001df3bc0a80005c0a800010800c6cd0200070061626364"
        "65666768696a6b6c6d6e6f707172737401020201"
    )
    icv = bytes.fromhex("f2a9a836e155106aa8dcd618e4099aaa")
    packet = bytes.fromhex("0000432100000007") + bytes(8) + plain + icv
    assert opened_by("aes128gmac", keys, 0x4321, packet) == plain


@pytest.mark.rfc("2410", "3")
def test_null_is_the_packet_and_an_icv() -> None:
    inner = udp(21)
    packet = sealed_by("null-sha256", SaKeys(Secret(b""), Secret(bytes(32))), 9, inner)
    text = struct.pack(">II", SPI, 9) + inner + b"\x01\x01\x04"
    assert packet == text + hmac.digest(bytes(32), text, "sha256")[:16]


@pytest.mark.rfc("3566", "4")
@with_and_without_esn
def test_xcbc_covers_the_packet_and_the_high_half(*, uses_esn: bool) -> None:
    """RFC 4303 §2.2.1: the high half of an ESN is behind what is authenticated, not sent."""
    box = Box("null-aesxcbc", uses_esn=uses_esn)
    box.jump((3 << 32) + 4 if uses_esn else 4)
    (packet,) = box.seal(bytes(26))
    high = struct.pack(">I", 3) if uses_esn else b""
    mac = Xcbc(keys_of(box.suite).integrity.reveal()).compute(packet[:-12] + high)
    assert packet[-12:] == mac[:12]


@each_suite
@pytest.mark.parametrize("count", [1, BY_COLUMN])
def test_nothing_is_written_behind_the_last_slot(name: str, count: int) -> None:
    suite = suite_of(name)
    outbound = OutboundSa(SPI, suite, keys_of(suite), uses_esn=True)
    arena, ends = memoryview(bytearray(count * outbound.slot(100))), []
    assert outbound.seal_batch(arena, 0, (count, 100, IPV4), ends) == count
    assert ends[-1] == len(arena)


@pytest.mark.rfc("4303", "2.8")
@each_suite
@pytest.mark.parametrize("count", [1, BY_COLUMN + 2])
def test_a_changed_octet_anywhere_is_refused(name: str, count: int) -> None:
    """Header, IV, ciphertext and ICV are all protected; the next good packet still opens."""
    box, sent = Box(name), messages(count, 24)
    for place in (5, 9, 20, 40, -1):
        sealed = box.seal(*sent)
        bad = bytearray(sealed[-1])
        bad[place] ^= 1
        assert inners(box.open(*sealed[:-1], bytes(bad)), 24) == sent[:-1]
        assert inners(box.open(sealed[-1]), 24) == sent[-1:]
    assert box.drops["integrity"] + box.drops["replay"] == 5


def test_a_forged_packet_does_not_move_the_window() -> None:
    """RFC 4303 §3.4.3: the window is updated only after the ICV was found right."""
    box = Box()
    (good,) = box.seal(messages(1)[0])
    forged = Struct(">II").pack(SPI, 100_000) + good[8:]
    assert box.open(forged) == []
    assert box.window.top == 0
    assert box.drops == {"integrity": 1}
    assert len(box.open(good)) == 1


def test_duplicates_are_refused_in_a_train_and_alone() -> None:
    box = Box()
    sealed = box.seal(*messages(20))
    assert len(box.open(*sealed)) == 20
    assert box.open(*sealed) == []
    assert box.drops == {"replay": 20}


def test_order_and_gaps_within_the_window_do_not_matter() -> None:
    box, sent = Box(window=64), messages(60)
    sealed = box.seal(*sent)
    order = [*range(10, 30), *range(9, -1, -1), 59, *range(58, 40, -2)]
    assert inners(box.open(*[sealed[n] for n in order])) == [sent[n] for n in order]
    assert not box.drops


def test_older_than_the_window_is_refused() -> None:
    box = Box(window=32, uses_esn=False)
    sealed = box.seal(*messages(100))
    box.open(sealed[99])
    assert box.open(sealed[67]) == []  # number 68 = 100 - 32
    assert len(box.open(sealed[68])) == 1
    assert box.drops == {"replay": 1}


def test_a_train_ends_at_a_packet_of_another_sa() -> None:
    box, other = Box(), struct.pack(">II", SPI + 1, 1) + bytes(100)
    sealed = box.seal(*messages(20))
    batch = [memoryview(packet) for packet in (*sealed[:12], other, *sealed[12:])]
    runs: list[Run] = []
    assert box.inbound.open_batch(batch, 0, box.arena, runs) == 12
    assert box.inbound.open_batch(batch, 13, box.arena, runs := []) == 21
    assert inners(box.plaintexts(runs)) == messages(20)[12:]


def test_a_train_ends_where_the_buffer_does() -> None:
    box = Box()
    sealed = box.seal(*messages(100, 1000))
    batch, arena = [memoryview(packet) for packet in sealed], box.arena[:65600]
    runs: list[Run] = []
    first = box.inbound.open_batch(batch, 0, arena, runs)
    assert 60 <= first < 66
    assert box.inbound.open_batch(batch, first, arena, []) == 100
    assert not box.drops


def test_lengths_make_runs_and_gaps_do_not() -> None:
    box = Box()
    small, large = box.seal(*messages(3, 50)), box.seal(*messages(12, 200))
    damaged = large[5][:-1] + bytes([large[5][-1] ^ 1])
    batch = [*small, *large[:5], damaged, *large[6:]]
    runs: list[Run] = []
    box.inbound.open_batch([memoryview(packet) for packet in batch], 0, box.arena, runs)
    assert [run.packets for run in runs] == [3, 11]
    assert all(run.stride % 2 == 0 for run in runs)


@pytest.mark.parametrize("length", [8, 15, 31, 32, 33, 34])
def test_packets_of_impossible_length_are_dropped(length: int) -> None:
    box = Box()
    packet = struct.pack(">II", SPI, 1) + bytes(length - 8)
    assert box.open(packet) == []
    assert sum(box.drops.values()) == 1


def test_cbc_that_is_no_multiple_of_a_block_is_dropped_before_the_cipher_sees_it() -> None:
    box = Box("aes128-sha256")
    (packet,) = box.seal(messages(1)[0])
    assert box.open(packet[:-4]) == []
    assert box.drops == {"malformed": 1}
    assert len(box.open(packet)) == 1


@pytest.mark.rfc("4303", "2.2")
@pytest.mark.rfc("4303", "3.3.3")
def test_sequence_numbers_end_without_esn() -> None:
    """RFC 4303 §3.3.3: the counter must not cycle."""
    box = Box(uses_esn=False)
    box.jump(2**32 - 6)
    sealed = box.seal(*messages(20))
    assert len(sealed) == 5
    assert box.outbound.is_exhausted
    assert box.seal(*messages(20)) == []
    assert len(box.open(*sealed)) == 5
    assert box.window.top == 2**32 - 1
    assert box.open(struct.pack(">II", SPI, 0) + sealed[0][8:]) == []


@pytest.mark.rfc("4303", "2.2.1")
@each_suite
def test_extended_sequence_numbers_cross_two_to_the_32(name: str) -> None:
    box = Box(name)
    box.jump(2**32 - 20)
    sent = messages(60)
    assert inners(box.open(*box.seal(*sent))) == sent
    assert box.window.top == 2**32 + 40
    assert not box.outbound.is_exhausted


def test_sequence_numbers_go_on_behind_those_of_another_plane() -> None:
    box = Box()
    box.outbound.skip_to(1000)
    assert struct.unpack(">II", box.seal(bytes(40))[0][:8]) == (SPI, 1001)
    with pytest.raises(UsageError):
        box.outbound.skip_to(7)


def test_sequence_zero_is_never_taken() -> None:
    box = Box()
    assert box.open(struct.pack(">II", SPI, 0) + bytes(100)) == []
    assert box.drops == {"replay": 1}


@pytest.mark.parametrize(
    "name", ["aes128gcm16", "chacha20poly1305", "aes128ccm8", "aes128ctr-sha256", "aes128gmac"]
)
def test_counter_ivs_never_repeat(name: str) -> None:
    box = Box(name)
    ivs = [packet[8:16] for _ in range(3) for packet in box.seal(*[bytes(40)] * 20)]
    assert len(set(ivs)) == 60


@pytest.mark.rfc("4303", "2.3")
def test_cbc_ivs_are_unpredictable() -> None:
    """Equal packets of equal SAs have different IVs and ciphertexts. RFC 3602 §3."""
    packets = [p for _ in range(2) for p in Box("aes128-sha256").seal(*[bytes(64)] * 20)]
    assert len({packet[8:24] for packet in packets}) == 40
    assert len({packet[24:40] for packet in packets}) == 40


@each_suite
@given(size=st.integers(100, 65535))
@settings(max_examples=40)
def test_inner_limit_is_the_longest_that_fits(name: str, size: int) -> None:
    suite = suite_of(name)
    outbound = OutboundSa(1, suite, keys_of(suite), uses_esn=True)
    limit = inner_limit(size, suite)
    assert outbound.slot(limit) - 2 <= size < outbound.slot(limit + 1) - 2


def test_unknown_algorithms_are_refused() -> None:
    suite = suite_of("aes128gcm16")
    odd = type(suite)(Encr.DES3, None, Integ.HMAC_SHA2_256_128, None, uses_esn=True)
    with pytest.raises((Unsupported, UsageError)):
        OutboundSa(1, odd, keys_of(suite), uses_esn=True)


@pytest.mark.rfc("8221", "4")
@pytest.mark.parametrize("encr", [Encr.NULL, Encr.AES_CTR, Encr.AES_CBC])
def test_encryption_without_integrity_is_refused(encr: Encr) -> None:
    bare = type(suite_of("aes128gcm16"))(encr, None, None, None, uses_esn=True)
    with pytest.raises((Unsupported, UsageError)):
        OutboundSa(1, bare, SaKeys(Secret(bytes(20)), Secret(b"")), uses_esn=True)


class Reference:
    """A replay window that remembers everything."""

    def __init__(self, size: int) -> None:
        self.size, self.top, self.seen = size, 0, set()

    def takes(self, sequence: int) -> bool:
        if sequence <= 0 or sequence in self.seen or sequence <= self.top - self.size:
            return False
        self.seen.add(sequence)
        self.top = max(self.top, sequence)
        return True


@pytest.mark.rfc("4303", "3.4.3")
@with_and_without_esn
@given(
    size=st.integers(1, 200),
    start=st.sampled_from([0, 1, 2**32 - 150, 2**32, 2**33 - 50]),
    steps=st.lists(st.integers(-220, 150), max_size=60),
)
@settings(max_examples=150)
def test_replay_window_is_as_simple_as_a_set(
    *, uses_esn: bool, size: int, start: int, steps: list[int]
) -> None:
    """Appendix A2: a low half is understood while it is within 2^31 or so of the window."""
    start = start if uses_esn else start & 0xFFFF
    window, reference = ReplayWindow(size, uses_esn=uses_esn), Reference(size)
    window.advance(start)
    reference.top, reference.seen = start, set(range(max(start - size, 0), start + 1))
    for step in steps:
        sequence = reference.top + step
        if not 0 <= sequence < (2**64 if uses_esn else 2**32):
            continue
        located = window.locate(sequence & 0xFFFF_FFFF)
        taken = reference.takes(sequence)
        if not taken:  # it may be mistaken for one far ahead, which the ICV then denies
            assert located == 0 or (uses_esn and located > sequence)
            continue
        assert located == sequence
        window.accept(located)
        assert window.top == reference.top


@given(counts=st.lists(st.integers(0, 100), max_size=20), size=st.integers(1, 300))
@settings(max_examples=60)
def test_advancing_is_accepting_one_by_one(counts: list[int], size: int) -> None:
    quick, slow = ReplayWindow(size, uses_esn=True), ReplayWindow(size, uses_esn=True)
    for count in counts:
        quick.advance(count)
        for _ in range(count):
            slow.accept(slow.top + 1)
        for low in range(max(quick.top - size - 2, 0), quick.top + 3):
            assert quick.locate(low) == slow.locate(low)


def test_keys_are_in_no_repr() -> None:
    box = Box("aes128-sha256")
    text = f"{box.outbound!r} {box.inbound!r} {keys_of(box.suite)!r}"
    assert keys_of(box.suite).encryption.reveal().hex() not in text
    assert repr(keys_of(box.suite).encryption.reveal())[2:-1] not in text
