"""AUTH by a shared key. RFC 7296 §2.15, and §2.16 for the key of an EAP method."""

from typing import Final

from tunnelwrap.crypto.prf import Prf
from tunnelwrap.crypto.secret import Secret

_KEY_PAD: Final = b"Key Pad for IKEv2"


def psk_auth(prf: Prf, secret: Secret, octets: bytes) -> bytes:
    """AUTH = prf(prf(shared secret, "Key Pad for IKEv2"), signed octets). RFC 7296 §2.15.

    Compare two of them as Secrets, which takes constant time.
    """
    return prf.compute(prf.compute(secret.reveal(), _KEY_PAD), octets)
