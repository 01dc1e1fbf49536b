"""Messages of the kernel's IPsec, by octets that iproute2 has sent; no kernel is asked."""

from dataclasses import replace
from ipaddress import ip_address, ip_network
from struct import unpack_from

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.dataplane.samples import SUITES, keys_of, suite_of
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.dataplane.xfrm_messages import Msg, encoded
from tunnelwrap.dataplane.xfrm_reports import read_policy, read_sa
from tunnelwrap.dataplane.xfrm_requests import policy_message, sa_message
from tunnelwrap.dataplane.xfrm_suite import ah_algorithms, esp_algorithms
from tunnelwrap.dataplane.xfrm_values import (
    Algorithm,
    Algorithms,
    Direction,
    Encapsulation,
    KernelPolicy,
    KernelSa,
    Limits,
    Mark,
    PolicyFlag,
    PortMask,
    Replay,
    SaId,
    Selector,
    Template,
    XfrmMode,
)
from tunnelwrap.errors import Unsupported
from tunnelwrap.iana import Integ

NEAR, FAR = ip_address("192.0.2.1"), ip_address("192.0.2.2")

# ip xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1000 mode tunnel
#   flag af-unspec flag esn replay-window 64 replay-seq 7 replay-oseq-hi 1 reqid 5
#   aead 'rfc4106(gcm(aes))' 0x000102030405060708090a0b0c0d0e0f10111213 128
#   encap espinudp 4500 40000 0.0.0.0 mark 1 mask 0xff if_id 9
#   limit byte-soft 1000 limit time-hard 600 output-mark 2 mask 0xf
NEWSA = bytes.fromhex(
    """
    ac01000010000500bc99076b00000000000000000000000000000000000000000000000000000000000000000000
    0000000000000000000000000000000000000000000000000000c000020200000000000000000000000000001000
    32000000c0000201000000000000000000000000e803000000000000ffffffffffffffffffffffffffffffffffff
    ffffffffffff00000000000000005802000000000000000000000000000000000000000000000000000000000000
    00000000000000000000000000000000000000000000000000000000000000000000000000000000050000000200
    0100a00000000000000060001200726663343130362867636d286165732929000000000000000000000000000000
    0000000000000000000000000000000000000000000000000000000000000000a000000080000000000102030405
    060708090a0b0c0d0e0f101112131c000400020011949c400000000000000000000000000000000000001c001700
    0200000000000000070000000100000000000000400000000c00150001000000ff00000008001f00090000000800
    1d000200000008001e000f000000
    """
)
SA = KernelSa(
    id=SaId(FAR, 0x1000),
    source=NEAR,
    mode=XfrmMode.TUNNEL,
    algorithms=Algorithms(aead=Algorithm("rfc4106(gcm(aes))", Secret(bytes(range(20))), 128)),
    replay=Replay(64, True, 0x1_0000_0000, 7),
    reqid=5,
    encapsulation=Encapsulation(4500, 40000),
    mark=Mark(1, 0xFF),
    output_mark=Mark(2, 0xF),
    if_id=9,
    limits=Limits(soft_octets=1000, hard_age_s=600),
)

# ip xfrm policy add src 2001:db8:1::/48 dst 2001:db8:2::/48 proto udp dport 53 dir out
#   priority 1000 flag icmp tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid 5 mode tunnel
NEWPOLICY = bytes.fromhex(
    """
    fc00000013000500c499076b0000000020010db800020000000000000000000020010db800010000000000000000
    00000035ffff000000000a003030110000000000000000000000ffffffffffffffffffffffffffffffffffffffff
    ffffffffffffffffffffffff00000000000000000000000000000000000000000000000000000000000000000000
    000000000000000000000000000000000000000000000000000000000000e8030000000000000100020000000000
    44000500c0000202000000000000000000000000000000003200000002000000c000020100000000000000000000
    00000500000001000000ffffffffffffffffffffffff
    """
)
POLICY = KernelPolicy(
    selector=Selector(
        ip_network("2001:db8:1::/48"),
        ip_network("2001:db8:2::/48"),
        protocol=17,
        destination_port=PortMask.only(53),
    ),
    direction=Direction.OUT,
    templates=(Template(NEAR, FAR, XfrmMode.TUNNEL, reqid=5),),
    priority=1000,
    flags=PolicyFlag.ICMP,
)

HEADER = 16
USERSA_INFO = 224
REPLAY_ESN_VAL = 23


def attributes(octets: bytes, offset: int) -> dict[int, bytes]:
    """The attributes of a message, by type."""
    found = {}
    while offset < len(octets):
        length, kind = unpack_from("HH", octets, offset)
        found[kind] = octets[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def test_an_sa_is_read_from_iproutes_octets_and_written_to_the_same() -> None:
    assert read_sa(NEWSA) == SA
    octets = encoded(sa_message(SA), Msg.NEWSA, 0, 1)
    info = slice(HEADER, HEADER + USERSA_INFO)
    assert octets[info] == NEWSA[info]
    ours, theirs = (attributes(each, HEADER + USERSA_INFO) for each in (octets, NEWSA))
    theirs[REPLAY_ESN_VAL] += bytes(8)  # iproute2 leaves an empty bitmap out
    assert ours == theirs
    assert len(octets) == int.from_bytes(octets[:4], "little")


def test_a_policy_is_read_from_iproutes_octets_and_written_to_the_same() -> None:
    assert read_policy(NEWPOLICY) == POLICY
    assert encoded(policy_message(POLICY), Msg.NEWPOLICY, 0, 1)[HEADER:] == NEWPOLICY[HEADER:]


def test_keys_do_not_print_themselves() -> None:
    assert "Secret(20 octets)" in repr(SA)
    assert bytes(range(20)).hex() not in repr(SA)


def after_a_trip(replay: Replay) -> Replay:
    sa = replace(SA, replay=replay)
    return read_sa(encoded(sa_message(sa), Msg.NEWSA, 0, 1)).replay


@given(
    window=st.integers(1, 4096),
    inbound=st.integers(0, (1 << 64) - 1),
    outbound=st.integers(0, (1 << 64) - 1),
    seen=st.integers(0),
)
def test_sequence_numbers_survive_the_kernels_ring(
    window: int, inbound: int, outbound: int, seen: int
) -> None:
    replay = Replay(window, True, outbound, inbound, seen & (1 << window) - 1)
    assert after_a_trip(replay) == replay


@given(window=st.integers(0, 32), inbound=st.integers(0, 0xFFFF_FFFF))
def test_short_windows_are_those_of_old(window: int, inbound: int) -> None:
    replay = Replay(window, False, 5, inbound, inbound & (1 << window) - 1)
    octets = encoded(sa_message(replace(SA, replay=replay)), Msg.NEWSA, 0, 1)
    assert REPLAY_ESN_VAL not in attributes(octets, HEADER + USERSA_INFO)
    assert after_a_trip(replay) == replay


def test_the_ring_has_a_bit_for_each_sequence_number() -> None:
    """As xfrm_replay_check_esn looks it up: bit (sequence - 1) modulo the window."""
    replay = Replay(64, True, 0, 130, 0b101)  # 130 and 128 were seen
    octets = encoded(sa_message(replace(SA, replay=replay)), Msg.NEWSA, 0, 1)
    state = attributes(octets, HEADER + USERSA_INFO)[REPLAY_ESN_VAL]
    ring = int.from_bytes(state[24:], "little")
    assert ring == 1 << (130 - 1) % 64 | 1 << (128 - 1) % 64


@pytest.mark.parametrize("suite", SUITES)
def test_the_kernel_has_a_name_for_every_suite(suite: str) -> None:
    chosen = suite_of(suite)
    algorithms = esp_algorithms(chosen, keys_of(chosen))
    assert (algorithms.aead is None) != (algorithms.integrity is None)


def test_what_the_kernel_has_no_name_for_is_unsupported() -> None:
    chosen = suite_of("aes128-sha256")
    with pytest.raises(Unsupported, match="transform 1"):
        ah_algorithms(Integ.HMAC_MD5_96, keys_of(chosen), 12)
