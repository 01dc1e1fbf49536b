"""Splitting and joining by themselves: any order, loss and repetition of fragments. RFC 7383."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.pair import address
from tunnelwrap.config.suites import parse_ike
from tunnelwrap.crypto.keymat import ike_keys
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.suite import IkeSuite
from tunnelwrap.errors import IntegrityError
from tunnelwrap.iana import ExchangeType, PayloadType
from tunnelwrap.ike.fragments import (
    LEAST,
    MAX_FRAGMENTS,
    MAX_OCTETS,
    Fragmentation,
    Reassembly,
    Sent,
    Whole,
)
from tunnelwrap.ike.protect import Protection, encrypted_part, message_of
from tunnelwrap.path import Carrier, Path
from tunnelwrap.wire.message import Fragment, IkeHeader, Message, encode_chain
from tunnelwrap.wire.payloads import VendorId

SUITES = (
    "aes128gcm16-prfsha256-x25519",
    "chacha20poly1305-prfsha256-x25519",
    "aes256-sha256-modp2048",
    "aes256-sha512-modp2048",
)
SPI_I, SPI_R = b"initiato", b"responde"
UDP = Path(address("192.0.2.1"), address("198.51.100.1"), Carrier.UDP)


def protections(suite: str = SUITES[0]) -> tuple[Protection, Protection]:
    """The initiator's and the responder's."""
    ike = IkeSuite.from_proposal(parse_ike(suite))
    keys = ike_keys(ike, Secret(b"seed"), b"Ni", b"Nr", SPI_I, SPI_R)
    rng = random.Random(3)
    return (
        Protection(ike, keys, is_initiator=True, random=rng.randbytes),
        Protection(ike, keys, is_initiator=False, random=rng.randbytes),
    )


def message(octets: int, message_id: int = 1, fill: bytes = b"abc") -> Message:
    data = (fill * (octets // len(fill) + 1))[:octets]
    return Message(
        *(SPI_I, SPI_R, ExchangeType.IKE_AUTH),
        is_response=False,
        is_initiator=True,
        message_id=message_id,
        payloads=(VendorId(data[: octets // 2]), VendorId(data[octets // 2 :])),
    )


def take(reassembly: Reassembly, opener: Protection, octets: bytes) -> Whole | None:
    """What a receiver does with a fragment, in the order of RFC 7383 §2.6."""
    header = IkeHeader.decode(octets)
    encrypted = encrypted_part(header, octets)
    assert encrypted.fragment is not None
    if not reassembly.wants(header, encrypted.fragment):
        return None
    try:
        plaintext = opener.unseal(encrypted)
    except IntegrityError:
        return None
    return reassembly.add(header, encrypted.fragment, encrypted.first, plaintext)


def head(number: int = 1, length: int = 300) -> IkeHeader:
    flags = {"is_response": False, "is_initiator": True}
    common = (SPI_I, SPI_R, PayloadType.SKF, 2, 0, ExchangeType.IKE_AUTH)
    return IkeHeader(*common, **flags, message_id=number, length=length)


@pytest.mark.rfc("7383", "2.5")
@given(st.sampled_from(SUITES), st.integers(0, 6000), st.integers(LEAST, 1500))
def test_no_fragment_is_longer_than_asked_and_none_could_be_left_out(
    suite: str, octets: int, most: int
) -> None:
    sealer, opener = protections(suite)
    value = message(octets)
    whole = sealer.seal(value)
    pieces = sealer.seal_within(value, most)
    assert all(len(piece) <= most for piece in pieces)
    assert (len(pieces) == 1) is (len(whole) <= most)
    if len(pieces) == 1:
        assert opener.open(IkeHeader.decode(pieces[0]), pieces[0]) == value
        return
    parts = [encrypted_part(IkeHeader.decode(piece), piece) for piece in pieces]
    total = len(pieces)
    assert [part.fragment for part in parts] == [Fragment(n, total) for n in range(1, total + 1)]
    assert [part.first for part in parts] == [PayloadType.VENDOR_ID] + [0] * (total - 1)
    assert max(map(len, pieces)) > most - 16, "and they are as long as may be"


@pytest.mark.rfc("7383", "2.6")
@given(st.data())
def test_any_order_loss_and_repetition_gives_the_message_or_nothing(data: st.DataObject) -> None:
    sealer, opener = protections()
    value = message(data.draw(st.integers(600, 3000)))
    pieces = sealer.seal_within(value, data.draw(st.sampled_from([LEAST, 333, 500])))
    arriving = data.draw(st.lists(st.sampled_from(range(len(pieces))), max_size=3 * len(pieces)))
    reassembly = Reassembly()
    results = [take(reassembly, opener, pieces[n]) for n in arriving]
    wholes = [whole for whole in results if whole is not None]
    assert bool(wholes) is (set(arriving) == set(range(len(pieces))))
    for whole in wholes:
        assert message_of(head(), whole.first, whole.plaintext) == value
        assert whole.largest == max(map(len, pieces))


@pytest.mark.rfc("7383", "5")
@pytest.mark.rfc("7383", "2.6")
@given(st.data())
def test_fragments_of_an_attacker_never_displace_good_ones(data: st.DataObject) -> None:
    """Whatever is forged, spoiled or replayed in between, the message comes out."""
    sealer, opener = protections()
    value = message(1500)
    pieces = list(sealer.seal_within(value, LEAST))
    earlier = sealer.seal_within(value, 400)  # recorded from a split into fewer, or never sent
    foreign = protections(SUITES[1])[0].seal_within(value, LEAST - 10)
    spoiled = [piece[:-1] + bytes([piece[-1] ^ 1]) for piece in pieces]
    more = (len(pieces) + 9).to_bytes(2, "big")
    renumbered = [piece[:34] + more + piece[36:] for piece in pieces]
    bad = st.sampled_from([*foreign, *spoiled, *renumbered])
    reassembly = Reassembly()
    wholes = []
    for position, piece in enumerate(pieces):
        for forged in data.draw(st.lists(bad, max_size=3)):
            assert take(reassembly, opener, forged) is None
        if position:
            assert take(reassembly, opener, earlier[0]) is None
        wholes.append(take(reassembly, opener, piece))
    assert wholes[:-1] == [None] * (len(pieces) - 1)
    assert wholes[-1] is not None
    assert wholes[-1].plaintext == encode_chain(value.payloads)[1]


@pytest.mark.rfc("7383", "2.5.2")
def test_a_split_into_more_replaces_one_into_fewer_and_not_the_other_way_round() -> None:
    sealer, opener = protections()
    value = message(1500)
    few, many = sealer.seal_within(value, 800), sealer.seal_within(value, 300)
    reassembly = Reassembly()
    assert take(reassembly, opener, few[0]) is None
    for piece in many[:-1]:
        assert take(reassembly, opener, piece) is None
    assert take(reassembly, opener, few[1]) is None, "nothing of it is left to complete"
    whole = take(reassembly, opener, many[-1])
    assert whole is not None
    assert message_of(head(), whole.first, whole.plaintext) == value


def test_another_message_makes_room_for_itself() -> None:
    sealer, opener = protections()
    old, new = (
        sealer.seal_within(message(900, n, fill), 300) for n, fill in ((1, b"a"), (2, b"b"))
    )
    reassembly = Reassembly()
    take(reassembly, opener, old[0])
    wholes = [take(reassembly, opener, piece) for piece in new]
    assert wholes[-1] is not None
    assert b"a" not in wholes[-1].plaintext[4:]


def test_one_fragment_of_one_is_a_whole_message() -> None:
    reassembly = Reassembly()
    whole = reassembly.add(head(length=77), Fragment(1, 1), 43, b"inside")
    assert whole == Whole(43, b"inside", 77)
    assert reassembly.octets == 0


@pytest.mark.rfc("7383", "5")
def test_what_is_kept_has_limits() -> None:
    reassembly = Reassembly()
    assert not reassembly.wants(head(), Fragment(1, MAX_FRAGMENTS + 1))
    assert reassembly.wants(head(), Fragment(1, MAX_FRAGMENTS))
    piece = bytes(MAX_OCTETS // 3)
    for number in range(1, 4):
        reassembly.add(head(), Fragment(number, 5), 0, piece)
    assert reassembly.octets == 3 * len(piece) <= MAX_OCTETS
    assert reassembly.add(head(), Fragment(4, 5), 0, piece) is None
    assert reassembly.octets == 0, "it cannot become a message: nothing of it is kept"


def test_nothing_is_kept_beyond_the_time_for_it() -> None:
    fragmentation = Fragmentation(is_agreed=True)
    for reassembly in (fragmentation.requests, fragmentation.responses):
        reassembly.add(head(), Fragment(1, 2), 0, b"inside")
    fragmentation.forget()
    assert fragmentation.requests.octets == fragmentation.responses.octets == 0


@pytest.mark.rfc("7383", "2.5.1")
@pytest.mark.parametrize(
    ("near", "far", "has_marker", "most"),
    [
        ("192.0.2.1", "192.0.2.2", True, 1280 - 20 - 8 - 4),
        ("192.0.2.1", "192.0.2.2", False, 1280 - 20 - 8),
        ("2001:db8::1", "2001:db8::2", True, 1280 - 40 - 8 - 4),
    ],
)
def test_the_size_is_that_of_an_ip_datagram(
    near: str, far: str, has_marker: str, most: int
) -> None:
    path = Path(address(near), address(far), Carrier.UDP, has_marker=bool(has_marker))
    assert Fragmentation(is_agreed=True).most(path, 1280) == most
    assert Fragmentation().most(path, 1280) is None, "not agreed"


@pytest.mark.rfc("9329", "7.5")
@pytest.mark.parametrize("carrier", [Carrier.TCP, Carrier.TLS, Carrier.WEBSOCKET])
def test_x4_on_a_stream_all_is_whole(carrier: Carrier) -> None:
    assert Fragmentation(is_agreed=True).most(replace(UDP, carrier=carrier), 1280) is None


@pytest.mark.rfc("7383", "2.5.2")
@pytest.mark.parametrize(
    ("ip", "size", "steps"),
    [
        ("192.0.2.1", 9000, [1280, 576]),
        ("192.0.2.1", 1280, [576]),
        ("192.0.2.1", 576, []),
        ("192.0.2.1", 400, []),
        ("2001:db8::1", 9000, [1280]),
        ("2001:db8::1", 1280, []),
    ],
)
def test_sizes_are_probed_downwards(ip: str, size: int, steps: list[int]) -> None:
    path = Path(address(ip), address(ip), Carrier.UDP)
    headers = 48 if ":" in ip else 28
    fragmentation = Fragmentation(is_agreed=True)
    datagrams = fragmentation.seal_request(Sent(message(20000), protections()[0]), path, size)
    found = []
    while smaller := fragmentation.probe(datagrams, path, size):
        assert len(smaller) > len(datagrams)
        datagrams = smaller
        found.append(max(map(len, datagrams)) + headers + 4)
    assert found == steps
    if steps:
        again = fragmentation.seal_request(Sent(message(20000, 2), protections()[0]), path, size)
        assert len(again) == len(datagrams), "later requests begin where this one ended"


def test_a_message_that_is_short_enough_is_not_probed() -> None:
    fragmentation = Fragmentation(is_agreed=True)
    datagrams = fragmentation.seal_request(Sent(message(400), protections()[0]), UDP, 1280)
    assert fragmentation.probe(datagrams, UDP, 1280) == ()


def test_a_request_that_goes_to_another_path_is_split_only_where_that_needs_it() -> None:
    stream = replace(UDP, carrier=Carrier.TCP)
    fragmentation = Fragmentation(is_agreed=True)
    sent = Sent(message(2000), protections()[0])
    split = fragmentation.seal_request(sent, UDP, 1280)
    assert fragmentation.for_path(split, UDP, 1280) is split
    whole = fragmentation.for_path(split, stream, 1280)
    assert (len(split), len(whole)) == (2, 1)
    assert fragmentation.for_path(whole, stream, 1280) is whole
    assert len(fragmentation.for_path(whole, UDP, 1280)) == 2


@pytest.mark.rfc("7383", "2.5.1")
def test_a_response_is_split_as_finely_as_its_request() -> None:
    fragmentation = Fragmentation(is_agreed=True)
    sent = Sent(message(2000), protections()[0])
    fragmentation.heard = 500
    assert max(map(len, fragmentation.seal_response(sent, UDP, 1280))) == 500
    whole_request = fragmentation.seal_response(sent, UDP, 1280)
    assert max(map(len, whole_request)) == 1248
    fragmentation.heard = 30
    assert max(map(len, fragmentation.seal_response(sent, UDP, 1280))) == LEAST
