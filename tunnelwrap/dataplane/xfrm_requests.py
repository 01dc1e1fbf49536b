"""What the kernel's IPsec is told: values into the messages of NETLINK_XFRM."""

from collections.abc import Callable, Iterable
from socket import AF_INET, AF_INET6
from typing import Final

from tunnelwrap.dataplane.xfrm_messages import (
    AE_LIFETIME,
    AE_REPLAY,
    ALGO,
    ALGO_WITH_ICV,
    MIGRATE,
    NEVER,
    OFFLOAD_INBOUND,
    OFFLOAD_PACKET,
    REPLAY_ESN,
    TEMPLATE,
    AeventId,
    UserFlush,
    UserPolicy,
    UserPolicyId,
    UserSa,
    UserSaId,
    UserSpi,
    XfrmMessage,
)
from tunnelwrap.dataplane.xfrm_values import (
    Algorithm,
    Algorithms,
    Encapsulation,
    KernelPolicy,
    KernelSa,
    Limits,
    Mark,
    Migration,
    Offload,
    Proto,
    Replay,
    SaFlag,
    SaId,
    Selector,
    Template,
    Usage,
)
from tunnelwrap.path import IpAddress

_Attribute = tuple[str, object]

_LOW: Final = 0xFFFF_FFFF
_SHORT_WINDOW: Final = 32  # what xfrm_replay_state has a bitmap for
_ANY_ALGORITHM: Final = 0xFFFF_FFFF


def sa_message(sa: KernelSa) -> XfrmMessage:
    """NEWSA or UPDSA."""
    return _with(UserSa(), _usersa(sa), _sa_attributes(sa))


def sa_id_message(sa_id: SaId, mark: Mark | None) -> XfrmMessage:
    """DELSA or GETSA."""
    return _with(UserSaId(), {"id": _usersa_id(sa_id)}, _marks(mark, 0))


def spi_message(sa: KernelSa, low: int, high: int) -> XfrmMessage:
    """ALLOCSPI."""
    fields = {**_usersa(sa), "min": low, "max": high}
    return _with(UserSpi(), fields, _marks(sa.mark, sa.if_id))


def state_message(
    sa_id: SaId, mark: Mark | None, replay: Replay, usage: Usage | None
) -> XfrmMessage:
    """NEWAE: set where an SA is."""
    attributes = [*_marks(mark, 0), _replay_attribute(replay)]
    if usage is not None:
        attributes.append(("XFRMA_LTIME_VAL", _usage(usage)))
    return _with(AeventId(), {"id": _usersa_id(sa_id), "saddr": b""}, attributes)


def state_request(sa_id: SaId, mark: Mark | None) -> XfrmMessage:
    """GETAE: where is an SA?"""
    fields = {"id": _usersa_id(sa_id), "saddr": b"", "flags": AE_REPLAY | AE_LIFETIME}
    return _with(AeventId(), fields, _marks(mark, 0))


def policy_message(policy: KernelPolicy) -> XfrmMessage:
    """NEWPOLICY or UPDPOLICY."""
    attributes = _marks(policy.mark, policy.if_id)
    if policy.templates:
        attributes.append(("XFRMA_TMPL", b"".join(map(_template, policy.templates))))
    fields = {
        "sel": _selector(policy.selector),
        "lft": _limits(policy.limits),
        "curlft": _usage(Usage()),
        "priority": policy.priority,
        "dir": policy.direction,
        "action": policy.action,
        "flags": policy.flags,
    }
    return _with(UserPolicy(), fields, attributes)


def policy_id_message(policy: KernelPolicy) -> XfrmMessage:
    """DELPOLICY or GETPOLICY, by selector and not by index."""
    fields = {"sel": _selector(policy.selector), "dir": policy.direction}
    return _with(UserPolicyId(), fields, _marks(policy.mark, policy.if_id))


def migrate_message(
    policy: KernelPolicy, migrations: Iterable[Migration], encapsulation: Encapsulation | None
) -> XfrmMessage:
    """MIGRATE."""
    fields = {"sel": _selector(policy.selector), "dir": policy.direction}
    attributes = _marks(None, policy.if_id)
    attributes.append(("XFRMA_MIGRATE", b"".join(map(_migration, migrations))))
    if encapsulation is not None:
        attributes.append(("XFRMA_ENCAP", _encapsulation(encapsulation)))
    return _with(UserPolicyId(), fields, attributes)


def flush_message(proto: Proto) -> XfrmMessage:
    """FLUSHSA."""
    return _with(UserFlush(), {"proto": proto}, [])


def _with(
    message: XfrmMessage, fields: dict[str, object], attributes: list[_Attribute]
) -> XfrmMessage:
    message.update(fields)
    message["attrs"] = attributes
    return message


def _family(address: IpAddress) -> int:
    return AF_INET if address.version == 4 else AF_INET6


def _port(port: int) -> bytes:
    return port.to_bytes(2, "big")


def _spi(spi: int) -> bytes:
    return spi.to_bytes(4, "big")


def _usersa(sa: KernelSa) -> dict[str, object]:
    replay_window = 0 if _is_long(sa.replay) else sa.replay.window
    return {
        "sel": (b"",) * 6 + (0,) * 6 if sa.selector is None else _selector(sa.selector),
        "id": (sa.id.destination.packed, _spi(sa.id.spi), sa.id.proto),
        "saddr": sa.source.packed,
        "lft": _limits(sa.limits),
        "curlft": _usage(Usage()),
        "stats": (0, 0, 0),
        "seq": sa.sequence,
        "reqid": sa.reqid,
        "family": _family(sa.id.destination),
        "mode": sa.mode,
        "replay_window": replay_window,
        "flags": _sa_flags(sa),
    }


def _sa_flags(sa: KernelSa) -> SaFlag:
    """The flags, with those that follow from other fields."""
    flags = sa.flags & ~(SaFlag.AF_UNSPEC | SaFlag.ESN)
    if sa.selector is None:
        flags |= SaFlag.AF_UNSPEC
    return flags | SaFlag.ESN if sa.replay.uses_esn else flags


def _sa_attributes(sa: KernelSa) -> list[_Attribute]:
    attributes = [*_marks(sa.mark, sa.if_id), *_algorithms(sa.algorithms)]
    if _is_long(sa.replay) or sa.replay.outbound or sa.replay.inbound:
        attributes.append(_replay_attribute(sa.replay))
    if sa.encapsulation is not None:
        attributes.append(("XFRMA_ENCAP", _encapsulation(sa.encapsulation)))
    if sa.output_mark is not None:
        attributes.append(("XFRMA_SET_MARK", sa.output_mark.value))
        attributes.append(("XFRMA_SET_MARK_MASK", sa.output_mark.mask))
    if sa.offload is not None:
        attributes.append(("XFRMA_OFFLOAD_DEV", _offload(sa.offload)))
    numbers = {
        "XFRMA_SA_EXTRA_FLAGS": int(sa.extra_flags),
        "XFRMA_TFCPAD": sa.tfc_padding,
        "XFRMA_MTIMER_THRESH": sa.mapping_interval_s,
        "XFRMA_REPLAY_THRESH": sa.report_every_packets,
    }
    return attributes + [(name, number) for name, number in numbers.items() if number]


def _algorithms(algorithms: Algorithms) -> list[_Attribute]:
    known: list[tuple[str, Algorithm | None, Callable[[Algorithm], bytes]]] = [
        ("XFRMA_ALG_AEAD", algorithms.aead, _algorithm_with_icv),
        ("XFRMA_ALG_CRYPT", algorithms.encryption, _algorithm),
        ("XFRMA_ALG_AUTH_TRUNC", algorithms.integrity, _algorithm_with_icv),
        ("XFRMA_ALG_COMP", algorithms.compression, _algorithm),
    ]
    return [(name, encode(each)) for name, each, encode in known if each is not None]


def _algorithm(algorithm: Algorithm) -> bytes:
    key = algorithm.key.reveal()
    return ALGO.pack(algorithm.name.encode(), len(key) * 8) + key


def _algorithm_with_icv(algorithm: Algorithm) -> bytes:
    key = algorithm.key.reveal()
    return ALGO_WITH_ICV.pack(algorithm.name.encode(), len(key) * 8, algorithm.icv_bits) + key


def _is_long(replay: Replay) -> bool:
    """Whether the state is one with a bitmap of any length."""
    return replay.uses_esn or replay.window > _SHORT_WINDOW


def _replay_attribute(replay: Replay) -> _Attribute:
    outbound, inbound = replay.outbound & _LOW, replay.inbound & _LOW
    if not _is_long(replay):
        return "XFRMA_REPLAY_VAL", (outbound, inbound, replay.seen)
    words = -(-replay.window // 32)
    high = (replay.outbound >> 32, replay.inbound >> 32)
    head = REPLAY_ESN.pack(words, outbound, inbound, *high, replay.window)
    return "XFRMA_REPLAY_ESN_VAL", head + _ring(replay).to_bytes(words * 4, "little")


def _ring(replay: Replay) -> int:
    """The kernel's bitmap: bit n for the sequence numbers n + 1 modulo the window."""
    if replay.window == 0:
        return 0
    newest = (replay.inbound - 1) % replay.window
    bits = (n for n in range(replay.window) if replay.seen >> n & 1)
    return sum(1 << (newest - n) % replay.window for n in bits)


def _encapsulation(encap: Encapsulation) -> tuple[int, bytes, bytes, bytes]:
    return encap.kind, _port(encap.source_port), _port(encap.destination_port), b""


def _offload(offload: Offload) -> tuple[int, int, bytes]:
    inbound = OFFLOAD_INBOUND if offload.is_inbound else 0
    return offload.ifindex, inbound | (OFFLOAD_PACKET if offload.is_whole_packet else 0), b""


def _marks(mark: Mark | None, if_id: int) -> list[_Attribute]:
    attributes: list[_Attribute] = []
    if mark is not None:
        attributes.append(("XFRMA_MARK", (mark.value, mark.mask)))
    if if_id:
        attributes.append(("XFRMA_IF_ID", if_id))
    return attributes


def _usersa_id(sa_id: SaId) -> tuple[bytes, bytes, int, int]:
    destination = sa_id.destination
    return destination.packed, _spi(sa_id.spi), _family(destination), sa_id.proto


def _selector(selector: Selector) -> tuple[object, ...]:
    return (
        selector.destination.network_address.packed,
        selector.source.network_address.packed,
        *map(_port, (selector.destination_port.port, selector.destination_port.mask)),
        *map(_port, (selector.source_port.port, selector.source_port.mask)),
        _family(selector.source.network_address),
        selector.destination.prefixlen,
        selector.source.prefixlen,
        selector.protocol,
        selector.ifindex,
        0,
    )


def _limits(limits: Limits) -> tuple[int, ...]:
    amounts = (
        *(limits.soft_octets, limits.hard_octets),
        *(limits.soft_packets, limits.hard_packets),
    )
    times = (limits.soft_age_s, limits.hard_age_s, limits.soft_used_s, limits.hard_used_s)
    return *(NEVER if n is None else n for n in amounts), *(n or 0 for n in times)


def _usage(usage: Usage) -> tuple[int, int, int, int]:
    return usage.octets, usage.packets, usage.added_at, usage.used_at


def _template(template: Template) -> bytes:
    return TEMPLATE.pack(
        *(template.destination.packed, _spi(template.spi), template.proto),
        *(_family(template.destination), template.source.packed, template.reqid),
        *(template.mode, 0, template.is_optional),
        *(_ANY_ALGORITHM, _ANY_ALGORITHM, _ANY_ALGORITHM),
    )


def _migration(move: Migration) -> bytes:
    return MIGRATE.pack(
        *(move.old_destination.packed, move.old_source.packed),
        *(move.new_destination.packed, move.new_source.packed),
        *(move.proto, move.mode, 0, move.reqid),
        *(_family(move.old_destination), _family(move.new_destination)),
    )
