"""The octets that an AUTH payload proves. RFC 7296 §2.15, RFC 9242 §3.3.2."""

from tunnelwrap.crypto.prf import Prf
from tunnelwrap.crypto.secret import Secret


def signed_octets(  # the formula has six inputs
    first_message: bytes,
    peer_nonce: bytes,
    prf: Prf,
    sk_p: Secret,
    id_body: bytes,
    int_auth: bytes = b"",
) -> bytes:
    """What one side signs: its first message | the other's nonce | prf(SK_p, its ID) | IntAuth.

    Args:
        first_message: the signer's IKE_SA_INIT message, from the first octet of its header.
        peer_nonce: the other side's nonce, without payload header.
        prf: the negotiated PRF.
        sk_p: SK_pi for the initiator's octets, SK_pr for the responder's.
        id_body: the signer's ID payload without its generic header (RestOfIDPayload).
        int_auth: what IntAuth comes to; empty where there was no IKE_INTERMEDIATE.
    """
    return first_message + peer_nonce + prf.compute(sk_p.reveal(), id_body) + int_auth


def intermediate_auth(prf: Prf, sk_p: Secret, previous: bytes, content: bytes) -> bytes:
    """One side's IntAuth after one more IKE_INTERMEDIATE: prf(SK_p, previous | A | P).

    Args:
        prf: the negotiated PRF.
        sk_p: SK_pi or SK_pr, of the generation that protected the message.
        previous: the same side's value before; empty at first.
        content: the side's message in its unencrypted form (``wire.message.encode_unencrypted``).
    """
    return prf.compute(sk_p.reveal(), previous + content)
