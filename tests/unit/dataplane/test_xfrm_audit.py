"""What the kernel has beside what it was told."""

import json
from dataclasses import replace
from ipaddress import ip_address, ip_network
from socket import if_nametoindex

from tunnelwrap.crypto.secret import Secret
from tunnelwrap.daemon.control import MAX_LINE
from tunnelwrap.dataplane.xfrm_audit import Audit, compare
from tunnelwrap.dataplane.xfrm_values import (
    Algorithm,
    Algorithms,
    Direction,
    KernelPolicy,
    KernelSa,
    Offload,
    SaFailures,
    SaId,
    Selector,
    Template,
    Usage,
    XfrmMode,
)

LOOPBACK = Offload(if_nametoindex("lo"), is_inbound=True)
NEAR, FAR = ip_address("192.0.2.1"), ip_address("192.0.2.2")
KEYS = Algorithms(aead=Algorithm("rfc4106(gcm(aes))", Secret(b"k" * 20), 128))
INBOUND = KernelSa(
    id=SaId(NEAR, 0x1000), source=FAR, mode=XfrmMode.TUNNEL, algorithms=KEYS, reqid=7
)
OUTBOUND = replace(INBOUND, id=SaId(FAR, 0x1001), source=NEAR)
OURS = [INBOUND.id, OUTBOUND.id]
OUT = KernelPolicy(
    selector=Selector(ip_network("10.1.0.0/16"), ip_network("10.2.0.0/16")),
    direction=Direction.OUT,
    templates=(Template(NEAR, FAR, XfrmMode.TUNNEL, 7, spi=0x1001),),
)
IN = KernelPolicy(
    selector=Selector(ip_network("10.2.0.0/16"), ip_network("10.1.0.0/16")),
    direction=Direction.IN,
    templates=(Template(NEAR, FAR, XfrmMode.TUNNEL, 7),),
)


def test_what_has_carried_something_is_no_difference() -> None:
    used = replace(INBOUND, usage=Usage(100, 2), last_used_at=9)

    found = compare([used, OUTBOUND], [OUT, replace(IN, index=3)], OURS, [OUT, IN])

    assert found.differences == []
    assert found == Audit([used, OUTBOUND], [OUT, IN], [], [], [], [])


def test_what_somebody_deleted_is_missing() -> None:
    found = compare([OUTBOUND], [OUT], OURS, [OUT, IN])

    assert found.missing_sas == [INBOUND.id]
    assert found.missing_policies == [IN]
    assert found.differences == [
        "ESP 00001000 to 192.0.2.1 was deleted or changed by somebody else",
        "policy in 10.2.0.0/16 to 10.1.0.0/16 was deleted or changed by somebody else",
    ]


def test_a_policy_that_is_not_as_it_should_be_is_missing() -> None:
    assert compare([], [replace(OUT, templates=IN.templates)], [], [OUT]).missing_policies == [OUT]


def test_what_we_do_not_know_is_told_and_not_missed() -> None:
    found = compare([INBOUND, OUTBOUND], [OUT, IN], [INBOUND.id], [IN])

    assert (found.strange_sas, found.strange_policies, found.missing) == ([OUTBOUND], [OUT], [])
    assert found.differences == [
        "ESP 00001001 to 192.0.2.2 has our mark, and we do not know it",
        "policy out 10.1.0.0/16 to 10.2.0.0/16 has our mark, and we do not know it",
    ]


def test_a_reserved_spi_is_no_difference_and_no_sa() -> None:
    larval = replace(INBOUND, algorithms=Algorithms())

    assert compare([larval], [], [], []) == Audit([], [], [], [], [], [])
    assert compare([larval], [], [INBOUND.id], []).missing_sas == [INBOUND.id]


def test_a_device_that_is_gone_has_its_number() -> None:
    sa = replace(INBOUND, offload=Offload(0x7FFF_FFFF, is_inbound=True))

    ((told,),) = [compare([sa], [], [], []).to_json({})["sas"]]

    assert told["offloaded_to"] == "device 2147483647"


def test_of_very_many_the_first_are_told_and_fit_into_one_answer() -> None:
    many = [replace(INBOUND, id=SaId(NEAR, spi)) for spi in range(0x1000, 0x4000)]

    told = compare(many, [], [], []).to_json({})

    assert told["total_sas"] == len(many)
    assert len(json.dumps(told)) < MAX_LINE


def test_it_is_told_with_what_was_dropped_and_without_keys() -> None:
    sa = replace(INBOUND, usage=Usage(100, 2), failures=SaFailures(1, 2, 3), offload=LOOPBACK)

    told = compare([sa], [OUT], [INBOUND.id], [OUT]).to_json({"XfrmInNoPols": 2, "congestion": 1})

    assert told == {
        "total_sas": 1,
        "total_policies": 1,
        "sas": [
            {
                "spi": "00001000",
                "protocol": "ESP",
                "source": "192.0.2.2",
                "destination": "192.0.2.1",
                "mode": "tunnel",
                "udp_ports": None,
                "offloaded_to": "lo",
                "if_id": 0,
                "octets": 100,
                "packets": 2,
                "sequence_in": 0,
                "sequence_out": 0,
                "replayed": 3,
                "not_authentic": 3,
            }
        ],
        "policies": [
            {
                "direction": "out",
                "selector": "10.1.0.0/16 to 10.2.0.0/16",
                "priority": 0,
                "spis": ["00001001"],
                "packets": 0,
            }
        ],
        "differences": [],
        "dropped": [
            {
                "counter": "XfrmInNoPols",
                "packets": 2,
                "meaning": "a packet came out of an SA with addresses that were never agreed on",
            },
            {"counter": "congestion", "packets": 1, "meaning": "a packet was dropped"},
        ],
    }
