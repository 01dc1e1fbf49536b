"""Proving who a peer is. RFC 7296 §2.15, §2.16.

Contract: IKE_AUTH (``ike.ike_auth``) owns the order of messages; this package owns what is
proved. Every proof of an AUTH payload is made over the same signed octets (``octets``):

    PSK           psk.psk_auth(prf, secret, octets)
    certificate   crypto.signature.sign and verify; certificate.identity_is_bound for the name
    EAP           runs between the first IKE_AUTH request and the AUTH payloads: it takes EAP
                  packets and gives EAP packets until it has succeeded with a key (MSK) or without
                  (the identity's SK_p stands in); the AUTH payloads are then made by psk_auth
                  over that key

Failure is always errors.AuthenticationFailed, whose text names the cause for our log; the peer
sees only AUTHENTICATION_FAILED. Nothing here keeps state, reads a clock or draws randomness.
"""
