"""Golden octets of tests/vectors/wire, and one value of every payload for the tests of wire."""

import json
from ipaddress import ip_address, ip_network
from pathlib import Path

from tunnelwrap.iana import (
    AuthMethod,
    CertEncoding,
    CfgAttribute,
    CfgType,
    Encr,
    Esn,
    ExchangeType,
    IdType,
    Integ,
    KeMethod,
    NotifyType,
    PayloadType,
    Prf,
    ProtocolId,
    TransformType,
)
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import (
    Auth,
    Certificate,
    CertificateRequest,
    Configuration,
    ConfigurationAttribute,
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
)
from tunnelwrap.wire.proposal import Proposal, SaPayload, Transform
from tunnelwrap.wire.reader import Reader

SPI_I = bytes.fromhex("0102030405060708")
SPI_R = bytes.fromhex("1112131415161718")

IKE_PROPOSAL = Proposal(
    1,
    ProtocolId.IKE,
    b"",
    (
        Transform(TransformType.ENCR, Encr.AES_CBC, 256),
        Transform(TransformType.ENCR, Encr.AES_CBC, 128),
        Transform(TransformType.PRF, Prf.HMAC_SHA2_256, None),
        Transform(TransformType.INTEG, Integ.HMAC_SHA2_256_128, None),
        Transform(TransformType.KE, KeMethod.CURVE25519, None),
    ),
)
ESP_PROPOSAL = Proposal(
    2,
    ProtocolId.ESP,
    bytes.fromhex("c0ffee01"),
    (
        Transform(TransformType.ENCR, Encr.AES_GCM_16, 256),
        Transform(TransformType.ESN, Esn.ESN, None),
        Transform(TransformType.ESN, Esn.NO_ESN, None),
    ),
)
SELECTORS = (
    TrafficSelector.from_network(ip_network("10.72.0.0/24")),
    TrafficSelector.from_network(ip_network("fd72::/64"), 6, 80, 443),
    TrafficSelector(17, 65535, 0, ip_address("192.0.2.1"), ip_address("192.0.2.9")),
)
PAYLOADS: tuple[Payload, ...] = (
    SaPayload((IKE_PROPOSAL, ESP_PROPOSAL)),
    KeyExchange(KeMethod.CURVE25519, bytes(range(32))),
    Nonce(bytes(range(100, 132))),
    IdPayload(PayloadType.ID_I, IdType.FQDN, b"client.example.org"),
    IdPayload(PayloadType.ID_R, IdType.RFC822_ADDR, b"gateway@example.org"),
    Certificate(CertEncoding.RAW_PUBLIC_KEY, bytes(40)),
    CertificateRequest(CertEncoding.X509_SIGNATURE, bytes(range(40))),
    Auth(AuthMethod.SHARED_KEY, bytes(range(32))),
    Notify(ProtocolId.NONE, b"", NotifyType.COOKIE, b"cookie"),
    Notify(ProtocolId.ESP, bytes.fromhex("c0ffee02"), NotifyType.REKEY_SA, b""),
    Notify(ProtocolId.IKE, SPI_I, NotifyType.INVALID_SYNTAX, b""),
    Delete(ProtocolId.IKE, ()),
    Delete(ProtocolId.ESP, (bytes.fromhex("c0ffee03"), bytes.fromhex("c0ffee04"))),
    VendorId(b"tunnelwrap"),
    TrafficSelectors(PayloadType.TS_I, SELECTORS),
    TrafficSelectors(PayloadType.TS_R, SELECTORS[:1]),
    Configuration(
        CfgType.REQUEST,
        (
            ConfigurationAttribute(CfgAttribute.INTERNAL_IP4_ADDRESS, b""),
            ConfigurationAttribute(CfgAttribute.INTERNAL_IP4_DNS, bytes([10, 72, 0, 53])),
        ),
    ),
    EapPayload(bytes.fromhex("0201000a016361726f6c")),
    UnknownPayload(49, b"what is this"),
)
"""One value of every payload, and one of each shape where there are several."""

_FOLDER = Path(__file__).parents[2] / "vectors" / "wire"
_OCTETS = frozenset({"message", "inner", "octets"})


def load(name: str) -> list[dict]:
    """The cases of a file of vectors, octets as bytes."""
    cases = json.loads((_FOLDER / f"{name}.json").read_text())["cases"]
    return [{key: _value(key, value) for key, value in case.items()} for case in cases]


def reader(text: str) -> Reader:
    """A Reader of octets in hexadecimal."""
    return Reader(bytes.fromhex(text))


def message(*payloads: Payload, exchange: int = ExchangeType.IKE_SA_INIT) -> Message:
    """A request of the original initiator."""
    return Message(
        SPI_I,
        SPI_R,
        exchange,
        is_response=False,
        is_initiator=True,
        message_id=0,
        payloads=payloads,
    )


def _value(key: str, value: object) -> object:
    return bytes.fromhex(value) if key in _OCTETS and isinstance(value, str) else value
