"""scapy and tshark read what we write; scapy writes the same octets, and we read what it writes."""

import json
import subprocess
from collections.abc import Callable, Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from scapy.contrib import ikev2
from scapy.layers.inet import IP, UDP
from scapy.packet import NoPayload, Packet, Raw
from scapy.utils import wrpcap

from tests.unit.wire.samples import ESP_PROPOSAL, IKE_PROPOSAL, PAYLOADS, SELECTORS, load, message
from tunnelwrap.iana import CertEncoding, ExchangeType, IdType, PayloadType
from tunnelwrap.wire.esp import NAT_KEEPALIVE, NON_ESP_MARKER, EspHeader
from tunnelwrap.wire.message import (
    HEADER_LENGTH,
    IkeHeader,
    Message,
    decode_chain,
    encode_outer,
)
from tunnelwrap.wire.payloads import (
    Auth,
    Certificate,
    CertificateRequest,
    Configuration,
    Delete,
    EapPayload,
    IdPayload,
    KeyExchange,
    Nonce,
    Notify,
    Payload,
    TrafficSelector,
    TrafficSelectors,
    UnknownPayload,
    VendorId,
    payload_type_of,
)
from tunnelwrap.wire.proposal import Proposal, SaPayload
from tunnelwrap.wire.reader import Reader

_ID_CLASSES = {PayloadType.ID_I: ikev2.IKEv2_IDi, PayloadType.ID_R: ikev2.IKEv2_IDr}
_TS_CLASSES = {PayloadType.TS_I: ikev2.IKEv2_TSi, PayloadType.TS_R: ikev2.IKEv2_TSr}


def scapy_of(payload: Payload) -> Packet:
    """scapy's layer with the same meaning; lengths and counts are for scapy to fill in."""
    return _BUILDERS[type(payload)](payload)


def _notify(payload: Notify) -> Packet:
    return ikev2.IKEv2_Notify(
        proto=payload.protocol, type=payload.notify, SPI=payload.spi, notify=payload.data
    )


def _delete(payload: Delete) -> Packet:
    spis = list(payload.spis)
    size = len(spis[0]) if spis else 0
    return ikev2.IKEv2_Delete(proto=payload.protocol, SPIsize=size, SPInum=len(spis), SPI=spis)


def _configuration(payload: Configuration) -> Packet:
    attributes = [
        ikev2.ConfigurationAttribute(
            type=a.type,
            length=len(a.value),
            value=str(ip_address(a.value)) if len(a.value) == 4 else a.value,
        )
        for a in payload.attributes
    ]
    return ikev2.IKEv2_CP(CFGType=payload.cfg_type, attributes=attributes)


def _proposals(proposals: Iterable[Proposal]) -> Packet:
    return _linked([_proposal(proposal) for proposal in proposals], 2)


def _proposal(proposal: Proposal) -> Packet:
    transforms = []
    for t in proposal.transforms:
        fields = {"transform_type": t.type, "transform_id": t.id}
        if t.key_bits is not None:
            fields |= {"length": 12, "key_length": t.key_bits}
        transforms.append(ikev2.IKEv2_Transform(**fields))
    return ikev2.IKEv2_Proposal(
        proposal=proposal.number,
        proto=proposal.protocol,
        SPI=proposal.spi,
        trans_nb=len(transforms),
        trans=_linked(transforms, 3),
    )


def _linked(layers: list[Packet], more: int) -> Packet:
    """Substructures in a row: all but the last announce another one."""
    for layer in layers:
        layer.next_payload = 0 if layer is layers[-1] else more
    whole = layers[-1]
    for layer in reversed(layers[:-1]):
        whole = layer / whole
    return whole


def _selector(selector: TrafficSelector) -> Packet:
    ports = {"start_port": selector.start_port, "end_port": selector.end_port}
    version = selector.start.version
    addresses = {
        f"starting_address_v{version}": str(selector.start),
        f"ending_address_v{version}": str(selector.end),
    }
    kind = ikev2.IPv4TrafficSelector if version == 4 else ikev2.IPv6TrafficSelector
    length = 16 if version == 4 else 40
    return kind(IP_protocol_ID=selector.protocol, length=length, **ports, **addresses)


_BUILDERS: dict[type, Callable[..., Packet]] = {
    SaPayload: lambda p: ikev2.IKEv2_SA(prop=_proposals(p.proposals)),
    KeyExchange: lambda p: ikev2.IKEv2_KE(group=p.method, ke=p.data),
    Nonce: lambda p: ikev2.IKEv2_Nonce(nonce=p.data),
    IdPayload: lambda p: _ID_CLASSES[p.type](IDtype=p.id_type, ID=p.data),
    Certificate: lambda p: ikev2.IKEv2_CERT(cert_encoding=p.encoding, cert_data=p.data),
    CertificateRequest: lambda p: ikev2.IKEv2_CERTREQ(
        cert_encoding=p.encoding, cert_authority=p.authorities
    ),
    Auth: lambda p: ikev2.IKEv2_AUTH(auth_type=p.method, load=p.data),
    Notify: _notify,
    Delete: _delete,
    VendorId: lambda p: ikev2.IKEv2_VendorID(vendorID=p.data),
    TrafficSelectors: lambda p: _TS_CLASSES[p.type](
        traffic_selector=[_selector(selector) for selector in p.selectors]
    ),
    Configuration: _configuration,
    EapPayload: lambda p: ikev2.IKEv2_EAP(load=p.message),
    UnknownPayload: lambda p: ikev2.IKEv2_GSPM(load=p.data),  # type 49 has a name there
}


def scapy_message(value: Message) -> Packet:
    """A whole message of scapy's."""
    numbers = [payload_type_of(payload) for payload in value.payloads] + [0]
    flags = "+".join(["Initiator"] * value.is_initiator + ["Response"] * value.is_response)
    whole = ikev2.IKEv2(
        init_SPI=value.spi_i,
        resp_SPI=value.spi_r,
        next_payload=numbers[0],
        exch_type=value.exchange,
        flags=flags,
        id=value.message_id,
    )
    for payload, following in zip(value.payloads, numbers[1:], strict=True):
        layer = scapy_of(payload)
        layer.next_payload = following
        whole = whole / layer
    return whole


def layers_of(packet: Packet) -> list[Packet]:
    """The payloads that scapy finds in a message."""
    found = []
    layer = packet.payload
    while not isinstance(layer, NoPayload):
        found.append(layer)
        layer = layer.payload
    return found


def read(octets: bytes) -> Message:
    head = IkeHeader.decode(octets)
    payloads = decode_chain(head.next_payload, Reader(octets, HEADER_LENGTH))
    flags = (head.is_response, head.is_initiator)
    return Message(head.spi_i, head.spi_r, head.exchange, *flags, head.message_id, payloads)


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: type(payload).__name__)
def test_scapy_writes_the_same_octets(payload: Payload) -> None:
    value = message(payload)
    octets = bytes(scapy_message(value))
    assert octets == value.encode()
    assert read(octets) == value


def test_scapy_writes_the_same_message() -> None:
    value = message(*PAYLOADS)
    assert bytes(scapy_message(value)) == value.encode()


def test_scapy_reads_the_same_payloads() -> None:
    value = message(*PAYLOADS)
    layers = layers_of(ikev2.IKEv2(value.encode()))
    assert [type(layer) for layer in layers] == [type(scapy_of(p)) for p in PAYLOADS]
    for layer, payload in zip(layers, PAYLOADS, strict=True):
        layer.remove_payload()
        assert bytes(layer)[4:] == payload.encode()


def test_scapy_reads_the_same_fields() -> None:
    layers = layers_of(ikev2.IKEv2(message(*PAYLOADS).encode()))
    proposal = layers[0].prop
    for ours in (IKE_PROPOSAL, ESP_PROPOSAL):
        assert (proposal.proposal, proposal.proto, proposal.SPI) == (
            *(ours.number, ours.protocol, ours.spi),
        )
        transform = proposal.trans
        for t in ours.transforms:
            assert (transform.transform_type, transform.transform_id) == (t.type, t.id)
            assert transform.key_length == t.key_bits
            transform = transform.payload
        proposal = proposal.payload
    (first, second, third) = layers[14].traffic_selector
    assert (first.starting_address_v4, first.ending_address_v4) == ("10.72.0.0", "10.72.0.255")
    assert (second.IP_protocol_ID, second.start_port, second.end_port) == (6, 80, 443)
    assert second.starting_address_v6 == "fd72::"
    assert (third.start_port, third.end_port) == (65535, 0)


def write_pcap(file: Path, datagrams: Iterable[bytes], port: int) -> None:
    head = IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=port, dport=port)
    wrpcap(str(file), [head / Raw(octets) for octets in datagrams])


def tshark(file: Path, *options: str) -> str:
    command = ["tshark", "-n", "-r", str(file), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fields_of(file: Path, *names: str) -> list[list[str]]:
    """For each frame the values of fields, several of one joined by commas."""
    options = [option for name in names for option in ("-e", name)]
    lines = tshark(file, "-T", "fields", "-E", "separator=/t", *options).splitlines()
    return [line.split("\t") for line in lines]


def complaints(file: Path) -> list[bool]:
    """For each IKE message, whether tshark has something to complain of."""
    frames = json.loads(tshark(file, "-T", "json"))
    layers = [frame["_source"]["layers"] for frame in frames]
    marks = ("_ws.malformed", "_ws.expert")
    return [
        any(mark in json.dumps(layer) for mark in marks) for layer in layers if "isakmp" in layer
    ]


# tshark reads certificates and raw public keys as what they say they are.
READABLE = tuple(p for p in PAYLOADS if not isinstance(p, Certificate))


def test_tshark_finds_nothing_malformed(tmp_path: Path) -> None:
    """Each payload by itself, and all in one message."""
    file = tmp_path / "ike.pcap"
    values = [message(payload) for payload in READABLE]
    values += [message(*READABLE), message(exchange=ExchangeType.INFORMATIONAL)]
    write_pcap(file, [value.encode() for value in values], 500)
    assert complaints(file) == [False] * len(values)


@pytest.mark.parametrize("at", [38, 131, 397])  # size of a proposal's SPI, of KE, of D's SPIs
def test_tshark_would_find_what_is_malformed(at: int, tmp_path: Path) -> None:
    """Proof that the judge above can say no."""
    file = tmp_path / "damaged.pcap"
    octets = bytearray(message(*READABLE).encode())
    octets[at] ^= 0xFF
    write_pcap(file, [bytes(octets)], 500)
    assert complaints(file) == [True]


def test_tshark_sees_the_same_chain(tmp_path: Path) -> None:
    file = tmp_path / "chain.pcap"
    value = message(*READABLE)
    write_pcap(file, [value.encode()], 500)
    names = ("ispi", "rspi", "exchangetype", "messageid", "length")
    (row,) = fields_of(file, *(f"isakmp.{name}" for name in names), "isakmp.typepayload")
    assert row[0] == value.spi_i.hex()
    assert row[1] == value.spi_r.hex()
    assert row[2:5] == ["34", "0x00000000", str(len(value.encode()))]
    # substructures are payloads to tshark: 2 is a proposal, 3 a transform
    seen = [int(number) for number in row[5].split(",") if int(number) not in (2, 3)]
    assert seen == [payload_type_of(payload) for payload in READABLE]


def test_tshark_sees_the_same_proposals(tmp_path: Path) -> None:
    file = tmp_path / "sa.pcap"
    write_pcap(file, [message(PAYLOADS[0]).encode()], 500)
    names = ("prop.number", "prop.protoid", "prop.transforms", "spi", "tf.type")
    names += ("ike2.attr.key_length", "tf.id.encr", "tf.id.dh", "tf.id.esn")
    (row,) = fields_of(file, *(f"isakmp.{name}" for name in names))
    both = (IKE_PROPOSAL, ESP_PROPOSAL)
    transforms = [t for proposal in both for t in proposal.transforms]
    assert row == [
        "1,2",
        "1,3",
        "5,3",
        "c0ffee01",
        ",".join(str(int(t.type)) for t in transforms),
        "256,128,256",
        "12,12,20",
        "31",
        "1,0",
    ]


def test_tshark_sees_the_same_selectors(tmp_path: Path) -> None:
    file = tmp_path / "ts.pcap"
    networks = [
        TrafficSelector.from_network(ip_network(n), 6, 1, 2) for n in ("10.0.0.0/8", "::/0")
    ]
    value = message(TrafficSelectors(PayloadType.TS_I, (*SELECTORS, *networks)))
    write_pcap(file, [value.encode()], 500)
    names = ("protoid", "start_port", "end_port", "start_ipv4", "end_ipv4")
    names += ("start_ipv6", "end_ipv6")
    (row,) = fields_of(file, *(f"isakmp.ts.{name}" for name in names))
    highest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
    assert row == [
        "0,6,17,6,6",
        "0,80,65535,1,1",
        "65535,443,0,2,2",
        "10.72.0.0,192.0.2.1,10.0.0.0",
        "10.72.0.255,192.0.2.9,10.255.255.255",
        "fd72::,::",
        f"fd72::ffff:ffff:ffff:ffff,{highest}",
    ]


def test_tshark_sees_the_same_notifies_and_deletes(tmp_path: Path) -> None:
    file = tmp_path / "notify.pcap"
    value = message(*(p for p in PAYLOADS if isinstance(p, Notify | Delete)))
    write_pcap(file, [value.encode()], 500)
    names = ("notify.msgtype", "spisize", "spinum", "spi", "delete.spi", "notify.protoid")
    (row,) = fields_of(file, *(f"isakmp.{name}" for name in names))
    assert row[0] == "16390,16393,7"
    assert row[1] == "0,4,8,0,4"
    assert row[2] == "0,2"
    assert row[3].split(",") == ["c0ffee02", value.spi_i.hex()]
    assert row[4] == "c0ffee03,c0ffee04"


def test_tshark_reads_a_certificate(tmp_path: Path) -> None:
    """One of strongSwan's, in a message of ours."""
    (case,) = [c for c in load("strongswan") if c["name"] == "certificates: IKE_AUTH request 1"]
    payloads = decode_chain(case["first"], Reader(case["inner"]))
    file = tmp_path / "cert.pcap"
    write_pcap(file, [message(*payloads, exchange=ExchangeType.IKE_AUTH).encode()], 500)
    assert complaints(file) == [False]
    names = ("isakmp.cert.encoding", "isakmp.id.type", "isakmp.id.data.user_fqdn")
    (row,) = fields_of(file, *names, "x509sat.uTF8String")
    assert row[0] == f"{CertEncoding.X509_SIGNATURE:d}"
    assert row[1].split(",") == [f"{IdType.RFC822_ADDR:d}", f"{IdType.FQDN:d}"]
    assert row[2] == "client@example.org"
    assert "client" in row[3]


def test_tshark_tells_ike_esp_and_keepalives_apart(tmp_path: Path) -> None:
    """What travels on port 4500. RFC 3948 §2."""
    file = tmp_path / "natt.pcap"
    sealed = bytes(range(64))
    outer = encode_outer(message(exchange=ExchangeType.IKE_AUTH), PayloadType.ID_I, len(sealed))
    datagrams = [
        NON_ESP_MARKER + message(PAYLOADS[0]).encode(),
        NON_ESP_MARKER + outer + sealed,
        EspHeader(0xC0FFEE01, 7).encode() + bytes(64),
        NAT_KEEPALIVE,
    ]
    write_pcap(file, datagrams, 4500)
    assert complaints(file) == [False, False]
    names = ("isakmp.typepayload", "isakmp.nextpayload", "esp.spi", "esp.sequence")
    rows = fields_of(file, *names, "frame.protocols")
    assert [row[0].split(",")[0] for row in rows] == ["33", "46", "", ""]
    assert rows[1][1] == "46,35"
    assert rows[2][2:4] == ["0xc0ffee01", "7"]
    assert [row[4].split(":")[-1] for row in rows] == ["isakmp", "isakmp", "esp", "udpencap"]
