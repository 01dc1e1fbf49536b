"""What the kernel's IPsec tells: messages of NETLINK_XFRM into values.

The messages' own values have no types; they end here.
"""

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_network
from socket import AF_INET, AF_UNSPEC
from struct import Struct
from typing import Final

from tunnelwrap.crypto.secret import Secret
from tunnelwrap.dataplane.xfrm_messages import (
    ALGO,
    ALGO_WITH_ICV,
    MIGRATE,
    NEVER,
    OFFLOAD_INBOUND,
    OFFLOAD_PACKET,
    REPLAY_ESN,
    TEMPLATE,
    AeventId,
    Msg,
    UserAcquire,
    UserExpire,
    UserFlush,
    UserMapping,
    UserPolicy,
    UserPolicyExpire,
    UserPolicyId,
    UserSa,
    UserSaId,
    XfrmMessage,
)
from tunnelwrap.dataplane.xfrm_values import (
    Acquire,
    Action,
    Algorithm,
    Algorithms,
    Direction,
    EncapKind,
    Encapsulation,
    Event,
    Expire,
    KernelPolicy,
    KernelSa,
    Limits,
    Mapping,
    Mark,
    Migrated,
    Migration,
    Offload,
    PoliciesFlushed,
    PolicyChanged,
    PolicyDeleted,
    PolicyExpire,
    PolicyFlag,
    PortMask,
    Proto,
    Replay,
    SaChanged,
    SaDeleted,
    SaExtraFlag,
    SaFailures,
    SaFlag,
    SaId,
    SasFlushed,
    SaState,
    Selector,
    StateReport,
    Template,
    Usage,
    XfrmMode,
)
from tunnelwrap.path import IpAddress, SocketAddress


def read_sa(octets: bytes) -> KernelSa:
    """An SA out of NEWSA."""
    message = _decoded(UserSa, octets)
    return _sa(message, message)


def read_policy(octets: bytes) -> KernelPolicy:
    """A policy out of NEWPOLICY."""
    message = _decoded(UserPolicy, octets)
    return _policy(message, message)


def read_state(octets: bytes) -> SaState:
    """Where an SA is, out of NEWAE."""
    message = _decoded(AeventId, octets)
    replay = _replay(message, 0, uses_esn=True)
    return SaState(
        id=_usersa_id(message["id"]),
        source=_address(message["saddr"], message["id"][2]),
        reqid=message["reqid"],
        outbound=replay.outbound,
        inbound=replay.inbound,
        usage=Usage(*(message.get_attr("XFRMA_LTIME_VAL") or ())),
    )


def read_event(kind: int, octets: bytes) -> Event | None:
    """What happened; None for what we do not want to know."""
    reader = _EVENTS.get(kind)
    return None if reader is None else reader(octets)


def _acquire(octets: bytes) -> Event:
    message = _decoded(UserAcquire, octets)
    family = message["packet"][6]  # of the addresses too: the template's
    destination, spi, proto = message["id"]
    return Acquire(
        sequence=message["seq"],
        id=SaId(_address(destination, family), int.from_bytes(spi), Proto(proto)),
        source=_address(message["saddr"], family),
        selector=_some_selector(message, "packet"),
        policy=_policy(message, message),
    )


def _expire(octets: bytes) -> Event:
    message = _decoded(UserExpire, octets)
    return Expire(_sa(message, message), bool(message["hard"]))


def _policy_expire(octets: bytes) -> Event:
    message = _decoded(UserPolicyExpire, octets)
    return PolicyExpire(_policy(message, message), bool(message["hard"]))


def _mapping(octets: bytes) -> Event:
    message = _decoded(UserMapping, octets)
    family = message["id"][2]
    old, new = (
        SocketAddress(
            _address(message[f"{age}_saddr"], family), int.from_bytes(message[f"{age}_sport"])
        )
        for age in ("old", "new")
    )
    return Mapping(_usersa_id(message["id"]), message["reqid"], old, new)


def _sa_deleted(octets: bytes) -> Event:
    return SaDeleted(_usersa_id(_decoded(UserSaId, octets)["id"]))


def _policy_deleted(octets: bytes) -> Event:
    message = _decoded(UserPolicyId, octets)
    return PolicyDeleted(_policy(message.get_attr("XFRMA_POLICY"), message))


def _migrated(octets: bytes) -> Event:
    message = _decoded(UserPolicyId, octets)
    migrations = _migrations(message.get_attr("XFRMA_MIGRATE") or b"")
    return Migrated(_some_selector(message), Direction(message["dir"]), migrations)


_EVENTS: Final[dict[int, Callable[[bytes], Event]]] = {
    Msg.ACQUIRE: _acquire,
    Msg.EXPIRE: _expire,
    Msg.POLEXPIRE: _policy_expire,
    Msg.MAPPING: _mapping,
    Msg.NEWSA: lambda octets: SaChanged(read_sa(octets), is_new=True),
    Msg.UPDSA: lambda octets: SaChanged(read_sa(octets), is_new=False),
    Msg.DELSA: _sa_deleted,
    Msg.NEWPOLICY: lambda octets: PolicyChanged(read_policy(octets), is_new=True),
    Msg.UPDPOLICY: lambda octets: PolicyChanged(read_policy(octets), is_new=False),
    Msg.DELPOLICY: _policy_deleted,
    Msg.FLUSHSA: lambda octets: SasFlushed(_decoded(UserFlush, octets)["proto"]),
    Msg.FLUSHPOLICY: lambda _octets: PoliciesFlushed(),
    Msg.NEWAE: lambda octets: StateReport(read_state(octets)),
    Msg.MIGRATE: _migrated,
}


def _decoded(kind: type[XfrmMessage], octets: bytes) -> XfrmMessage:
    message = kind(octets)
    message.decode()
    return message


def _sa(info: XfrmMessage, message: XfrmMessage) -> KernelSa:
    """An SA by its structure, and the message that has its attributes."""
    family = info["family"]
    destination, spi, proto = info["id"]
    flags = SaFlag(info["flags"])
    return KernelSa(
        id=SaId(_address(destination, family), int.from_bytes(spi), Proto(proto)),
        source=_address(info["saddr"], family),
        mode=XfrmMode(info["mode"]),
        algorithms=_algorithms(message),
        replay=_replay(message, info["replay_window"], uses_esn=SaFlag.ESN in flags),
        reqid=info["reqid"],
        selector=_selector(info),
        encapsulation=_encapsulation(message.get_attr("XFRMA_ENCAP")),
        mark=_mark(message.get_attr("XFRMA_MARK")),
        output_mark=_output_mark(message),
        if_id=message.get_attr("XFRMA_IF_ID") or 0,
        offload=_offload(message.get_attr("XFRMA_OFFLOAD_DEV")),
        limits=_limits(info["lft"]),
        flags=flags & ~(SaFlag.AF_UNSPEC | SaFlag.ESN),
        extra_flags=SaExtraFlag(message.get_attr("XFRMA_SA_EXTRA_FLAGS") or 0),
        tfc_padding=message.get_attr("XFRMA_TFCPAD") or 0,
        mapping_interval_s=message.get_attr("XFRMA_MTIMER_THRESH") or 0,
        sequence=info["seq"],
        usage=Usage(*info["curlft"]),
        failures=SaFailures(*info["stats"]),
        last_used_at=message.get_attr("XFRMA_LASTUSED") or 0,
    )


def _policy(info: XfrmMessage, message: XfrmMessage) -> KernelPolicy:
    """A policy by its structure, and the message that has its attributes."""
    return KernelPolicy(
        selector=_some_selector(info),
        direction=Direction(info["dir"]),
        templates=_templates(message.get_attr("XFRMA_TMPL") or b""),
        priority=info["priority"],
        action=Action(info["action"]),
        flags=PolicyFlag(info["flags"]),
        mark=_mark(message.get_attr("XFRMA_MARK")),
        if_id=message.get_attr("XFRMA_IF_ID") or 0,
        limits=_limits(info["lft"]),
        index=info["index"],
        usage=Usage(*info["curlft"]),
    )


def _templates(octets: bytes) -> tuple[Template, ...]:
    return tuple(
        Template(
            source=_address(source, family),
            destination=_address(destination, family),
            mode=XfrmMode(mode),
            reqid=reqid,
            proto=Proto(proto),
            spi=int.from_bytes(spi),
            is_optional=bool(is_optional),
        )
        for destination, spi, proto, family, source, reqid, mode, _, is_optional, *_ in (
            TEMPLATE.iter_unpack(octets)
        )
    )


def _migrations(octets: bytes) -> tuple[Migration, ...]:
    return tuple(
        Migration(
            old_source=_address(old_from, old_family),
            old_destination=_address(old_to, old_family),
            new_source=_address(new_from, new_family),
            new_destination=_address(new_to, new_family),
            mode=XfrmMode(mode),
            reqid=reqid,
            proto=Proto(proto),
        )
        for (old_to, old_from, new_to, new_from, proto, mode, _, reqid, old_family, new_family) in (
            MIGRATE.iter_unpack(octets)
        )
    )


def _address(octets: bytes, family: int) -> IpAddress:
    return IPv4Address(octets[:4]) if family == AF_INET else IPv6Address(octets)


def _usersa_id(fields: tuple[bytes, bytes, int, int]) -> SaId:
    destination, spi, family, proto = fields
    return SaId(_address(destination, family), int.from_bytes(spi), Proto(proto))


def _selector(message: XfrmMessage, name: str = "sel") -> Selector | None:
    """The selector; None for one that fits both IP versions."""
    fields = message[name]
    family, destination_bits, source_bits, protocol, ifindex, _ = fields[6:]
    if family == AF_UNSPEC:
        return None
    destination, source = (_address(octets, family) for octets in fields[:2])
    port, port_mask, source_port, source_mask = map(int.from_bytes, fields[2:6])
    return Selector(
        source=ip_network((source, source_bits), strict=False),
        destination=ip_network((destination, destination_bits), strict=False),
        protocol=protocol,
        source_port=PortMask(source_port, source_mask),
        destination_port=PortMask(port, port_mask),
        ifindex=ifindex,
    )


def _some_selector(message: XfrmMessage, name: str = "sel") -> Selector:
    selector = _selector(message, name)
    assert selector is not None  # policies and packets are of one IP version
    return selector


def _limits(fields: tuple[int, ...]) -> Limits:
    amounts = (None if n == NEVER else n for n in fields[:4])
    return Limits(*amounts, *(n or None for n in fields[4:]))


def _algorithms(message: XfrmMessage) -> Algorithms:
    return Algorithms(
        aead=_algorithm(ALGO_WITH_ICV, message.get_attr("XFRMA_ALG_AEAD")),
        encryption=_algorithm(ALGO, message.get_attr("XFRMA_ALG_CRYPT")),
        integrity=_algorithm(ALGO_WITH_ICV, message.get_attr("XFRMA_ALG_AUTH_TRUNC")),
        compression=_algorithm(ALGO, message.get_attr("XFRMA_ALG_COMP")),
    )


def _algorithm(head: Struct, octets: bytes | None) -> Algorithm | None:
    if octets is None:
        return None
    name, key_bits, *icv_bits = head.unpack_from(octets)
    key = octets[head.size :][: key_bits // 8]
    return Algorithm(name.rstrip(b"\0").decode(), Secret(key), *icv_bits)


def _replay(message: XfrmMessage, short_window: int, *, uses_esn: bool) -> Replay:
    octets: bytes | None = message.get_attr("XFRMA_REPLAY_ESN_VAL")
    if octets is None:
        outbound, inbound, seen = message.get_attr("XFRMA_REPLAY_VAL") or (0, 0, 0)
        return Replay(short_window, False, outbound, inbound, seen)
    _, outbound, inbound, outbound_high, inbound_high, window = REPLAY_ESN.unpack_from(octets)
    inbound |= inbound_high << 32
    ring = int.from_bytes(octets[REPLAY_ESN.size :], "little")
    seen = _unrolled(ring, window, inbound)
    return Replay(window, uses_esn, outbound | outbound_high << 32, inbound, seen)


def _unrolled(ring: int, window: int, inbound: int) -> int:
    """The bitmap with the newest first, from the kernel's: see ``xfrm_requests``."""
    bits = (n for n in range(window) if ring >> n & 1)
    return sum(1 << (inbound - 1 - n) % window for n in bits)


def _encapsulation(fields: tuple[int, bytes, bytes, bytes] | None) -> Encapsulation | None:
    if fields is None:
        return None
    kind, source_port, destination_port, _ = fields
    ports = int.from_bytes(source_port), int.from_bytes(destination_port)
    return Encapsulation(*ports, EncapKind(kind))


def _mark(fields: tuple[int, int] | None) -> Mark | None:
    return None if fields is None else Mark(*fields)


def _output_mark(message: XfrmMessage) -> Mark | None:
    value, mask = (message.get_attr(f"XFRMA_SET_MARK{end}") for end in ("", "_MASK"))
    return None if value is None else Mark(value, mask)


def _offload(fields: tuple[int, int, bytes] | None) -> Offload | None:
    if fields is None:
        return None
    ifindex, flags, _ = fields
    return Offload(ifindex, bool(flags & OFFLOAD_INBOUND), bool(flags & OFFLOAD_PACKET))
