"""What additional key exchanges leave behind, and one step of any of them. RFC 9370 §2.2.

``ike.intermediate`` does them before IKE_AUTH, ``ike.follow_up`` after a CREATE_CHILD_SA.
"""

from collections import deque

from tunnelwrap.auth.octets import intermediate_auth
from tunnelwrap.crypto.ke import LocalKey, Random, respond
from tunnelwrap.crypto.keymat import IkeKeys, ike_keys, skeyseed_rekey
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.suite import IkeSuite
from tunnelwrap.errors import InvalidSyntax, Malformed
from tunnelwrap.iana import KeMethod, name_of
from tunnelwrap.ike.protect import Protection
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import KeyExchange


class Intermediate:
    """The key exchanges between IKE_SA_INIT and IKE_AUTH. RFC 9242 §3.3, RFC 9370 §2.2.2.

    Owns: those still to come, IntAuth so far, the keys before and after the newest one.
    """

    __slots__ = (
        "_auth_i",
        "_auth_r",
        "_count",
        "_nonces",
        "_spis",
        "_suite",
        "methods",
        "next_keys",
        "opened",
        "previous",
    )

    def __init__(
        self, suite: IkeSuite, nonces: tuple[bytes, bytes], spis: tuple[bytes, bytes]
    ) -> None:
        self._suite, self._nonces, self._spis = suite, nonces, spis
        self._auth_i = self._auth_r = b""
        self._count = 0
        self.methods = deque(method for _, method in suite.additional_ke)
        self.opened = b""  # the peer's newest message in its unencrypted form
        self.previous: Protection | None = None  # repeated requests are under these keys
        self.next_keys: IkeKeys | None = None  # of the exchange whose response is not sealed yet

    @property
    def int_auth(self) -> bytes:
        """IntAuth: both sides' values and the message ID of IKE_AUTH. RFC 9242 §3.3.2."""
        if not self._count:
            return b""
        return self._auth_i + self._auth_r + (self._count + 1).to_bytes(4, "big")

    def completed(self, keys: IkeKeys, request: bytes, response: bytes, shared: Secret) -> None:
        """One exchange more: IntAuth goes on under the old SK_p, and the next keys follow.

        Args:
            keys: those that protect the exchange.
            request: in its unencrypted form (``wire.message.encode_unencrypted``).
            response: in the same form.
            shared: the secret of its key exchange.
        """
        prf = self._suite.prf_function()
        self._auth_i = intermediate_auth(prf, keys.sk_pi, self._auth_i, request)
        self._auth_r = intermediate_auth(prf, keys.sk_pr, self._auth_r, response)
        self._count += 1
        self.methods.popleft()
        seed = skeyseed_rekey(prf, keys.sk_d, shared, *self._nonces)
        self.next_keys = ike_keys(self._suite, seed, *self._nonces, *self._spis)


def respond_with(method: int, message: Message, random: Random) -> tuple[KeyExchange, Secret]:
    """Our KE payload for the peer's, and the secret that both share now.

    Raises:
        InvalidSyntax: the peer's is of another method, or no public value of this one.
    """
    ke = _due(method, message)
    try:
        public, shared = respond(method, ke.data, random)
    except Malformed as error:
        raise InvalidSyntax(str(error)) from error
    return KeyExchange(method, public), shared


def shared_secret(key: LocalKey, message: Message) -> Secret:
    """The secret that the responder's KE payload makes of our key.

    Raises:
        InvalidSyntax: it is of another method, or no public value of this one.
    """
    try:
        return key.shared(_due(key.method, message).data)
    except Malformed as error:
        raise InvalidSyntax(str(error)) from error


def _due(method: int, message: Message) -> KeyExchange:
    ke = message.find(KeyExchange)
    if ke is None or ke.method != method:
        sent = "none" if ke is None else name_of(KeMethod, ke.method)
        raise InvalidSyntax(f"KE payload is {sent}, {name_of(KeMethod, method)} is due")
    return ke
