"""Fuzz targets for ``Endpoint.receive``: a gateway and a client, in every state a peer meets.

Invariant of each: ``receive``, ``handle_timeout`` and draining never raise, whatever a stranger
sends, and whatever a peer says that has the keys; what goes out is a whole IKE message; a stranger
gets at most one datagram for one; and what an Endpoint holds does not grow.
"""

from collections.abc import Callable, Iterator

from tests.fuzz import messages, stands
from tests.fuzz.chains import mutated_messages
from tests.fuzz.stands import Runner, Stand
from tests.fuzz.target import Target


def _endpoint(
    name: str, make: Callable[[], Stand], samples: Callable[[], Iterator[bytes]]
) -> Target:
    return Target(f"endpoint_{name}", Runner(make), samples, mutated_messages)


ENDPOINT_TARGETS = (
    _endpoint("strangers", stands.gateway_of_strangers, messages.of_strangers),
    _endpoint("client_in_init", stands.client_in_init, messages.of_responders),
    _endpoint("gateway_in_auth", stands.gateway_in_auth, messages.of_initiators),
    _endpoint("client_in_auth", stands.client_in_auth, messages.established),
    _endpoint("gateway_established", stands.gateway_established, messages.established),
    _endpoint("client_established", stands.client_established, messages.established),
)
