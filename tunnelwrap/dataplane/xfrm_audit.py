"""What the kernel has beside what it was told: SAs and policies that others deleted or left.

Only what bears our tag is looked at; what others have is their affair.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from socket import if_indextoname
from typing import Final

from tunnelwrap.dataplane.xfrm_statistics import MEANINGS
from tunnelwrap.dataplane.xfrm_values import Algorithms, KernelPolicy, KernelSa, Offload, SaId

SHOWN: Final = 1000
"""Of each: what is told has to fit into one answer of the control socket."""


@dataclass(frozen=True, slots=True)
class Audit:
    """SAs and policies of ours, and how the kernel differs from what it was told."""

    sas: list[KernelSa]
    policies: list[KernelPolicy]
    missing_sas: list[SaId]
    missing_policies: list[KernelPolicy]  # not there, or not as they should be
    strange_sas: list[KernelSa]
    strange_policies: list[KernelPolicy]

    @property
    def missing(self) -> list[str]:
        """The names of what is not there."""
        return [*map(str, self.missing_sas), *map(_named, self.missing_policies)]

    @property
    def differences(self) -> list[str]:
        """Each difference in words."""
        strange = [str(sa.id) for sa in self.strange_sas]
        strange += map(_named, self.strange_policies)
        return [
            *(f"{name} was deleted or changed by somebody else" for name in self.missing),
            *(f"{name} has our mark, and we do not know it" for name in strange),
        ]

    def to_json(self, dropped: dict[str, int]) -> dict[str, object]:
        """It as plain JSON, with what was dropped in words; of very many only the first."""
        return {
            "total_sas": len(self.sas),
            "total_policies": len(self.policies),
            "sas": [_sa(each) for each in self.sas[:SHOWN]],
            "policies": [_policy(each) for each in self.policies[:SHOWN]],
            "differences": self.differences[:SHOWN],
            "dropped": [
                {"counter": name, "packets": count, "meaning": _meaning(name)}
                for name, count in dropped.items()
            ],
        }


def compare(
    found_sas: Iterable[KernelSa],
    found_policies: Iterable[KernelPolicy],
    our_sas: Iterable[SaId],
    our_policies: Iterable[KernelPolicy],
) -> Audit:
    """Lay what the kernel has beside what it was told.

    An SA without keys is a wish: an SPI that is reserved, or a packet that waits. It is no
    difference, nor does it stand for the SA whose place it has.

    Args:
        found_sas: the kernel's with our tag.
        found_policies: likewise.
        our_sas: what was put there.
        our_policies: likewise.
    """
    sas, policies = [sa for sa in found_sas if is_whole(sa)], list(found_policies)
    there, ours = {sa.id for sa in sas}, set(our_sas)
    shown = {each.key: each for each in policies}
    wanted = {each.key: each for each in our_policies}
    return Audit(
        sas,
        policies,
        [sa for sa in our_sas if sa not in there],
        [policy for key, policy in wanted.items() if shown.get(key) != policy],
        [sa for sa in sas if sa.id not in ours],
        [policy for key, policy in shown.items() if key not in wanted],
    )


def is_whole(sa: KernelSa) -> bool:
    """Whether an SA has keys."""
    return sa.algorithms != Algorithms()


def _named(policy: KernelPolicy) -> str:
    return f"policy {policy.direction.name.lower()} {policy.selector}"


def _meaning(counter: str) -> str:
    return f"a packet {MEANINGS.get(counter, 'was dropped')}"


def _sa(sa: KernelSa) -> dict[str, object]:
    ports = sa.encapsulation
    return {
        "spi": f"{sa.id.spi:08x}",
        "protocol": sa.id.proto.name,
        "source": str(sa.source),
        "destination": str(sa.id.destination),
        "mode": sa.mode.name.lower(),
        "if_id": sa.if_id,
        "udp_ports": [ports.source_port, ports.destination_port] if ports else None,
        "offloaded_to": _device(sa.offload) if sa.offload else None,
        "octets": sa.usage.octets,
        "packets": sa.usage.packets,
        "sequence_in": sa.replay.inbound,
        "sequence_out": sa.replay.outbound,
        "replayed": sa.failures.replayed + sa.failures.replay_window,
        "not_authentic": sa.failures.not_authentic,
    }


def _device(offload: Offload) -> str:
    try:
        return if_indextoname(offload.ifindex)
    except OSError:  # it is gone meanwhile
        return f"device {offload.ifindex}"


def _policy(policy: KernelPolicy) -> dict[str, object]:
    return {
        "direction": policy.direction.name.lower(),
        "selector": str(policy.selector),
        "priority": policy.priority,
        "spis": [f"{each.spi:08x}" for each in policy.templates if each.spi],
        "packets": policy.usage.packets,
    }
