"""The octets that an AUTH payload proves. RFC 7296 §2.15."""

from tunnelwrap.crypto.prf import Prf
from tunnelwrap.crypto.secret import Secret


def signed_octets(
    first_message: bytes, peer_nonce: bytes, prf: Prf, sk_p: Secret, id_body: bytes
) -> bytes:
    """What one side signs: its first message | the other's nonce | prf(SK_p, its ID).

    Args:
        first_message: the signer's IKE_SA_INIT message, from the first octet of its header.
        peer_nonce: the other side's nonce, without payload header.
        prf: the negotiated PRF.
        sk_p: SK_pi for the initiator's octets, SK_pr for the responder's.
        id_body: the signer's ID payload without its generic header (RestOfIDPayload).
    """
    return first_message + peer_nonce + prf.compute(sk_p.reveal(), id_body)
