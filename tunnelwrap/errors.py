"""The whole exception tree: an error says who is at fault, and which Notify answers it.

Raised at the point of knowledge; turned into behaviour by ``ike.sa`` (Notify or silence),
``daemon`` (close or retry) and ``cli`` (message and exit status), and nowhere else.
"""

from typing import ClassVar

from tunnelwrap.iana import NotifyType


class TunnelwrapError(Exception):
    """Anything that tunnelwrap raises on purpose."""


class ConfigError(TunnelwrapError):
    """A human has to fix a file: one line for each problem, all of them at once."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class WireError(TunnelwrapError):
    """Octets are not what the RFC says."""

    def __init__(self, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.offset = offset


class Truncated(WireError):
    """The octets end before the structure does."""


class Malformed(WireError):
    """A field has a value that its structure forbids."""


class UnsupportedCritical(WireError):
    """A payload of unknown type has its critical bit set. RFC 7296 §2.5."""

    def __init__(self, payload_type: int, offset: int = 0) -> None:
        super().__init__(f"unknown critical payload type {payload_type}", offset)
        self.payload_type = payload_type


class UnsupportedVersion(WireError):
    """The major version is higher than ours. RFC 7296 §2.5."""

    def __init__(self, major: int) -> None:
        super().__init__(f"IKE major version {major}, expected 2", 17)
        self.major = major


class IntegrityError(TunnelwrapError):
    """An ICV or a signature does not verify: drop and count, say nothing to the network."""


class Refusal(TunnelwrapError):
    """Well-formed, but the RFC or our policy says no; ``notify`` names the answer."""

    notify: ClassVar[NotifyType]

    def __init__(self, message: str, data: bytes = b"") -> None:
        super().__init__(message)
        self.data = data


class NoProposalChosen(Refusal):
    """No offered proposal is acceptable. RFC 7296 §2.7."""

    notify = NotifyType.NO_PROPOSAL_CHOSEN


class InvalidKe(Refusal):
    """The KE payload uses another method than the chosen proposal. RFC 7296 §1.2."""

    notify = NotifyType.INVALID_KE_PAYLOAD

    def __init__(self, message: str, method: int) -> None:
        super().__init__(message, method.to_bytes(2, "big"))
        self.method = method


class AuthenticationFailed(Refusal):
    """The peer did not prove who it is. RFC 7296 §2.21.2."""

    notify = NotifyType.AUTHENTICATION_FAILED


class TsUnacceptable(Refusal):
    """No traffic selector is left after narrowing. RFC 7296 §2.9."""

    notify = NotifyType.TS_UNACCEPTABLE


class SinglePairRequired(Refusal):
    """Only one pair of addresses is acceptable for a Child SA. RFC 7296 §2.9."""

    notify = NotifyType.SINGLE_PAIR_REQUIRED


class NoAdditionalSas(Refusal):
    """This IKE SA takes no further Child SA. RFC 7296 §1.3."""

    notify = NotifyType.NO_ADDITIONAL_SAS


class InternalAddressFailure(Refusal):
    """No address can be assigned. RFC 7296 §3.15.4."""

    notify = NotifyType.INTERNAL_ADDRESS_FAILURE


class FailedCpRequired(Refusal):
    """The peer had to ask for an address and did not. RFC 7296 §2.19."""

    notify = NotifyType.FAILED_CP_REQUIRED


class TemporaryFailure(Refusal):
    """Not now: another exchange is in the way. RFC 7296 §2.25."""

    notify = NotifyType.TEMPORARY_FAILURE


class ChildSaNotFound(Refusal):
    """The Child SA to rekey does not exist; ``data`` is its SPI, for the Notify. RFC 7296 §2.25."""

    notify = NotifyType.CHILD_SA_NOT_FOUND

    def __init__(self, message: str, protocol: int, spi: bytes) -> None:
        super().__init__(message, spi)
        self.protocol = protocol


class Redirected(Refusal):
    """Not here: another gateway serves this peer. RFC 5685 §3."""

    notify = NotifyType.REDIRECT


class TicketRefused(Refusal):
    """A ticket is not taken: it is old, used, or not ours. RFC 5723 §4.3.2."""

    notify = NotifyType.TICKET_NACK


class StateNotFound(Refusal):
    """No exchange that this IKE_FOLLOWUP_KE could follow is known. RFC 9370 §2.2.4."""

    notify = NotifyType.STATE_NOT_FOUND


class InvalidSyntax(Refusal):
    """An authenticated message breaks the RFC's syntax. RFC 7296 §3.10.1."""

    notify = NotifyType.INVALID_SYNTAX


class CriticalPayloadRefused(Refusal):
    """An authenticated message has a critical payload unknown to us. RFC 7296 §2.5."""

    notify = NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD


class PeerRefused(TunnelwrapError):
    """The peer sent us an error Notify."""

    def __init__(self, notify: int, message: str, data: bytes = b"") -> None:
        super().__init__(message)
        self.notify = notify
        self.data = data


class RedirectedTo(TunnelwrapError):
    """The peer sends us to another gateway. RFC 5685."""

    def __init__(self, gateway: str) -> None:
        super().__init__(f"redirected to {gateway}")
        self.gateway = gateway


class UsageError(TunnelwrapError):
    """Our own caller broke the contract: a bug, never the effect of network input."""


class TransportError(TunnelwrapError):
    """A carrier cannot be had or was lost."""


class ConnectFailed(TransportError):
    """No connection, or no answer on it."""


class TlsFailed(TransportError):
    """The TLS handshake failed, or the certificate is not acceptable."""


class PathClosed(TransportError):
    """The peer or the network ended the stream."""


class StreamCorrupt(PathClosed):
    """We ended the stream: there are no frames in it, or no more. RFC 9329 §6.1."""


class AllCarriersFailed(TransportError):
    """Every rung of the ladder failed; one reason for each, in order of the attempts."""

    def __init__(self, attempts: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{carrier}: {reason}" for carrier, reason in attempts))
        self.attempts = attempts


class DataPlaneError(TunnelwrapError):
    """ESP cannot be carried on this host."""


class NotPrivileged(DataPlaneError):
    """The right to do it is missing (CAP_NET_ADMIN)."""


class Unsupported(DataPlaneError):
    """The kernel or the library lacks what is asked for."""


class KernelRefused(DataPlaneError):
    """The kernel would not; ``number`` is its errno."""

    def __init__(self, operation: str, number: int, cause: str) -> None:
        super().__init__(f"{operation}: {cause}")
        self.operation = operation
        self.number = number


class HostNetError(TunnelwrapError):
    """An address, route, rule or resolver could not be changed."""


class StoreError(TunnelwrapError):
    """A lease or a user cannot be had."""


class PoolExhausted(StoreError):
    """No address of the pool is free."""


class CertificateError(TunnelwrapError):
    """An ACME server gave no certificate."""


class ControlError(TunnelwrapError):
    """The running daemon could not be reached, or refused the command."""
