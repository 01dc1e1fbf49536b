"""Choosing a proposal and narrowing traffic selectors: pure functions. RFC 7296 §2.7, §2.9."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from tunnelwrap.crypto.suite import ADDITIONAL_KE
from tunnelwrap.errors import NoProposalChosen, TsUnacceptable
from tunnelwrap.iana import Esn, KeMethod, TransformType, name_of
from tunnelwrap.wire.payloads import TrafficSelector
from tunnelwrap.wire.proposal import Proposal, Transform

# An absent transform of these types means the same as this one of it. RFC 7296 §3.3.2, §3.3.3;
# of additional key exchanges RFC 9370 §2.2.1
_ABSENT = {
    TransformType.INTEG: Transform(TransformType.INTEG, 0, None),
    TransformType.KE: Transform(TransformType.KE, KeMethod.NONE, None),
    TransformType.ESN: Transform(TransformType.ESN, Esn.NO_ESN, None),
    **{kind: Transform(kind, KeMethod.NONE, None) for kind in ADDITIONAL_KE},
}

_KE_TYPES = frozenset({TransformType.KE, *ADDITIONAL_KE})


def choose_proposal(offered: Sequence[Proposal], configured: Sequence[Proposal]) -> Proposal:
    """The offered proposal that comes first in our own order, with one transform of each type.

    Returns:
        The choice with the number and the SPI of the offer.

    Raises:
        NoProposalChosen: names both sides' lines and the nearest pair.
    """
    for ours in configured:
        for theirs in offered:
            chosen = _match(theirs, ours)
            if chosen is not None:
                return chosen
    raise NoProposalChosen(_mismatch(offered, configured))


def is_choice_of(chosen: Proposal, offered: Sequence[Proposal]) -> bool:
    """True where a responder's choice is one that we had offered: one transform of each type."""
    for proposal in offered:
        if proposal.number == chosen.number and proposal.protocol == chosen.protocol:
            match = _match(chosen, proposal)
            return match is not None and len(match.transforms) == len(chosen.transforms)
    return False


def is_allowed(chosen: Proposal, configured: Sequence[Proposal]) -> bool:
    """True where a choice of one transform of each type is within a configured proposal."""
    return any(_match(chosen, ours) is not None for ours in configured)


def without_ke(proposals: Sequence[Proposal]) -> list[Proposal]:
    """The proposals as IKE_AUTH wants them: its Child SA has no key exchange. RFC 7296 §1.2.

    Those that differed in nothing else are one.
    """
    kept = (tuple(t for t in p.transforms if t.type not in _KE_TYPES) for p in proposals)
    both = zip(proposals, kept, strict=True)
    return list(dict.fromkeys(replace(p, transforms=transforms) for p, transforms in both))


def with_single_ke(proposals: Iterable[Proposal]) -> list[Proposal]:
    """What is left for a peer without IKE_INTERMEDIATE: no additional key exchange. RFC 9370 §2."""
    return [
        replace(p, transforms=tuple(t for t in p.transforms if t.type not in ADDITIONAL_KE))
        for p in proposals
        if all(_ABSENT[kind] in _of_type(p, kind) for kind in ADDITIONAL_KE)
    ]


def ke_methods(proposals: Iterable[Proposal]) -> list[int]:
    """The key exchange methods of proposals, in order, without NONE."""
    found: dict[int, None] = {}
    for proposal in proposals:
        for transform in proposal.transforms:
            if transform.type == TransformType.KE and transform.id != KeMethod.NONE:
                found[transform.id] = None
    return list(found)


def transform_id(proposal: Proposal, transform_type: int) -> int | None:
    """The ID of the first transform of a type, or None."""
    return next((t.id for t in proposal.transforms if t.type == transform_type), None)


def numbered(proposals: Iterable[Proposal], spi: bytes) -> tuple[Proposal, ...]:
    """Our configured proposals as we send them: numbered from 1, with our SPI."""
    return tuple(replace(p, number=n, spi=spi) for n, p in enumerate(proposals, start=1))


def narrow(
    offered: Sequence[TrafficSelector], allowed: Sequence[TrafficSelector]
) -> tuple[TrafficSelector, ...]:
    """What of the offered selectors our policy allows. RFC 7296 §2.9.

    Raises:
        TsUnacceptable: nothing is left.
    """
    kept: dict[TrafficSelector, None] = {}
    for theirs in offered:
        for ours in allowed:
            common = _intersection(theirs, ours)
            if common is not None:
                kept[common] = None
    if not kept:
        raise TsUnacceptable(
            f"offered {_listed(offered)}, allowed {_listed(allowed)}: nothing in common"
        )
    return tuple(kept)


def _match(theirs: Proposal, ours: Proposal) -> Proposal | None:
    if theirs.protocol != ours.protocol:
        return None
    types = sorted({t.type for t in (*theirs.transforms, *ours.transforms)})
    common = [_common(theirs, ours, transform_type) for transform_type in types]
    chosen = _one_of_each(common, frozenset()) if all(common) else None
    if chosen is None:
        return None
    # a type that only one side names is agreed to be absent, and stays so in the answer
    named = {t.type for t in theirs.transforms}
    return replace(theirs, transforms=tuple(t for t in chosen if t.type in named))


def _one_of_each(
    choices: Sequence[Sequence[Transform]], taken: frozenset[int]
) -> list[Transform] | None:
    """One transform of each type, the first that go together.

    Args:
        choices: for each type what both sides have, in our order.
        taken: key exchange methods that are chosen already; none is done twice. RFC 9370 §2.2.2.
    """
    if not choices:
        return []
    for transform in choices[0]:
        is_ke = transform.type in _KE_TYPES and transform.id != KeMethod.NONE
        if is_ke and transform.id in taken:
            continue
        rest = _one_of_each(choices[1:], taken | {transform.id} if is_ke else taken)
        if rest is not None:
            return [transform, *rest]
    return None


def _common(theirs: Proposal, ours: Proposal, transform_type: int) -> list[Transform]:
    offered = _of_type(theirs, transform_type)
    return [t for t in _of_type(ours, transform_type) if t in offered]


def _of_type(proposal: Proposal, transform_type: int) -> list[Transform]:
    found = [t for t in proposal.transforms if t.type == transform_type]
    if not found and transform_type in _ABSENT:
        return [_ABSENT[TransformType(transform_type)]]
    return found


def _mismatch(offered: Sequence[Proposal], configured: Sequence[Proposal]) -> str:
    pairs = [(theirs, ours) for theirs in offered for ours in configured]
    text = f"no common proposal: peer offered {_listed(offered)}; configured {_listed(configured)}"
    if not pairs:
        return text
    theirs, ours = min(pairs, key=lambda pair: len(_differences(*pair)))
    differences = ", ".join(name_of(TransformType, t) for t in _differences(theirs, ours))
    return f"{text}; nearest: {theirs} and {ours}, which differ in {differences}"


def _differences(theirs: Proposal, ours: Proposal) -> list[int]:
    if theirs.protocol != ours.protocol:
        return [t.type for t in ours.transforms]
    types = sorted({t.type for t in (*theirs.transforms, *ours.transforms)})
    return [t for t in types if not _common(theirs, ours, t)]


def _listed(items: Iterable[object]) -> str:
    return ", ".join(str(item) for item in items) or "nothing"


def _intersection(a: TrafficSelector, b: TrafficSelector) -> TrafficSelector | None:
    if a.start.version != b.start.version:
        return None
    if a.protocol and b.protocol and a.protocol != b.protocol:
        return None
    low, high = max(int(a.start), int(b.start)), min(int(a.end), int(b.end))
    if low > high:
        return None
    ports = _common_ports(a, b)
    if ports is None:
        return None
    kind = type(a.start)
    return TrafficSelector(a.protocol or b.protocol, *ports, kind(low), kind(high))


def _common_ports(a: TrafficSelector, b: TrafficSelector) -> tuple[int, int] | None:
    opaque = [ts for ts in (a, b) if ts.start_port > ts.end_port]
    if opaque:
        other = b if opaque[0] is a else a
        covers = (other.start_port, other.end_port) in {(0, 65535), (65535, 0)}
        return (65535, 0) if covers else None
    low, high = max(a.start_port, b.start_port), min(a.end_port, b.end_port)
    return (low, high) if low <= high else None
