"""What the kernel's IPsec dropped, by cause, as it counts in /proc/net/xfrm_stat.

The counters are those of the whole network namespace, whoever's packets they were.
"""

from contextlib import suppress
from pathlib import Path
from typing import Final

_FILE: Final = Path("/proc/net/xfrm_stat")

MEANINGS: Final = {
    "XfrmInError": "came in and could not be handled, for none of the causes below",
    "XfrmInBufferError": "came in when no memory was left for it",
    "XfrmInHdrError": "came in with headers that make no sense",
    "XfrmInNoStates": "came in with an SPI that no SA has: from before a restart, or a probe",
    "XfrmInStateProtoError": "failed its integrity check: wrong keys, or forged",
    "XfrmInStateModeError": "came in by an SA of another mode than its packets are in",
    "XfrmInStateSeqError": "was a replay, or so late that it might be one",
    "XfrmInStateExpired": "came in by an SA that had reached its hard limit",
    "XfrmInStateMismatch": "came in UDP by an SA without it, or the other way round",
    "XfrmInStateInvalid": "came in by an SA that was not ready or on its way out",
    "XfrmInTmplMismatch": "came in by another SA than the policy asks for, or in clear",
    "XfrmInNoPols": "came out of an SA with addresses that were never agreed on",
    "XfrmInPolBlock": "came in, and a policy blocks it",
    "XfrmInPolError": "came in when its policy could not be applied",
    "XfrmInStateDirError": "came in by an SA that is only for going out",
    "XfrmInIptfsError": "came in as part of an IP-TFS stream that makes no sense",
    "XfrmOutError": "could not go out, for none of the causes below",
    "XfrmOutBundleGenError": "could not go out: the SAs for it could not be put together",
    "XfrmOutBundleCheckError": "could not go out: the SAs for it had just changed",
    "XfrmOutNoStates": "could not go out: a policy wants an SA, and there is none",
    "XfrmOutStateProtoError": "could not go out: its encryption failed",
    "XfrmOutStateModeError": "could not go out: no room for the headers, or longer than allowed",
    "XfrmOutStateSeqError": "could not go out: the sequence numbers are used up",
    "XfrmOutStateExpired": "could not go out: its SA had reached its hard limit",
    "XfrmOutPolBlock": "could not go out: a policy blocks it",
    "XfrmOutPolDead": "could not go out: its policy was being deleted",
    "XfrmOutPolError": "could not go out: its policy could not be applied",
    "XfrmOutStateInvalid": "could not go out: its SA was not ready or on its way out",
    "XfrmOutStateDirError": "could not go out by an SA that is only for coming in",
    "XfrmOutNoQueueSpace": "could not go out: too many wait for an SA",
    "XfrmFwdHdrError": "could not be forwarded: its headers make no sense",
    "XfrmAcquireError": "met an SA that was still being negotiated",
}
"""What happened to the packets that a counter counts: each sentence begins with "a packet"."""


def read_statistics() -> dict[str, int]:
    """The counters by name; none where the kernel does not count."""
    with suppress(OSError):
        lines = (line.split() for line in _FILE.read_text().splitlines())
        return {name: int(value) for name, value in lines}
    return {}


def since(before: dict[str, int]) -> dict[str, int]:
    """How much the counters have grown, where they have."""
    now = read_statistics().items()
    grown = {name: value - before.get(name, 0) for name, value in now}
    return {name: value for name, value in grown.items() if value > 0}
