"""Configurations of other programs, written from ours. Text out, no I/O, but for ``export``."""

from dataclasses import dataclass

from tunnelwrap.config.wrapper import Wrap


@dataclass(frozen=True, slots=True)
class Fallback:
    """A connection of another IKEv2 daemon that is to go through a wrapper."""

    name: str  # of the connection: letters, digits, hyphens and underscores
    wrap: Wrap
    local_id: str
    remote_id: str
    local_ts: tuple[str, ...]  # empty: an address that the gateway gives
    remote_ts: tuple[str, ...]
    uses_certificate: bool  # else a pre-shared key
    certificate: str | None  # as the daemon names it
    key: str | None

    @property
    def is_local(self) -> bool:
        """Whether the daemon must be on the wrapper's own host."""
        return self.wrap.listen.is_loopback

    @property
    def has_usual_ports(self) -> bool:
        """Whether the wrapper's are those that every daemon takes."""
        return (self.wrap.ike_port, self.wrap.nat_port) == (500, 4500)

    def reasons(self, sign: str) -> str:
        """What is the same for all daemons to say, as comment lines that begin with a sign."""
        return (
            f"{sign} The second way of a connection to {self.wrap.gateway}: through tunnelwrap,"
            " which goes by UDP,\n"
            f"{sign} TCP or TLS, whichever passes. To the daemon {self.wrap.listen} is the gateway."
            " Secrets, keys and\n"
            f"{sign} certificates are those of the first way, and where they were.\n"
        )
