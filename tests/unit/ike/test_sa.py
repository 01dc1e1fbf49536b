"""IkeSa and Child: states change by the table only, and what is missing is said."""

import random

import pytest

from tests.flows.scripted import ScriptedInitiator
from tests.kit.pair import NOW, address
from tests.kit.policies import client, gateway
from tunnelwrap.errors import UsageError
from tunnelwrap.ike.children import Child
from tunnelwrap.ike.context import Context
from tunnelwrap.ike.outputs import InstallChildSa
from tunnelwrap.ike.policy import Limits
from tunnelwrap.ike.rules import ChildState, IkeState
from tunnelwrap.ike.sa import IkeSa
from tunnelwrap.path import Carrier, Path


def new_sa(*, is_initiator: bool = True) -> IkeSa:
    rng = random.Random(3)
    context = Context(rng.randbytes, lambda: NOW, Limits(), forces_encapsulation=True)
    path = Path(address("192.0.2.1"), address("198.51.100.1"), Carrier.UDP)
    return IkeSa(context, (client(),), path, lambda sa: None, is_initiator=is_initiator)


def test_a_state_is_left_by_the_table_only() -> None:
    sa = new_sa()
    with pytest.raises(UsageError, match=r"CONNECTING to IkeState\.ESTABLISHED"):
        sa.become(IkeState.ESTABLISHED)
    sa.become(IkeState.AUTHENTICATING)
    assert sa.state is IkeState.AUTHENTICATING


def test_keys_and_connection_are_had_in_their_time() -> None:
    sa = new_sa(is_initiator=False)
    with pytest.raises(UsageError, match="no keys"):
        _ = sa.agreed
    with pytest.raises(UsageError, match="no connection"):
        _ = sa.chosen_policy
    assert sa.local_spi == sa.spi_r
    assert sa.peer == "a peer at udp 198.51.100.1:4500"


def test_an_ike_sa_ends_once() -> None:
    sa = new_sa()
    sa.close("first")
    sa.close("second")
    assert len(sa.context.drain()) == 1
    sa.transmit(b"octets")
    assert sa.context.drain() == [], "and says nothing more"


def test_a_child_sa_leaves_its_state_by_the_table_only() -> None:
    peer = ScriptedInitiator(client(), gateway())
    peer.connect()
    install = peer.fact(InstallChildSa)
    assert install is not None
    child = Child(install.child, client().child, 0.0, uses_outbound=True)
    child.become(ChildState.REKEYED)
    child.become(ChildState.REKEYED)
    with pytest.raises(UsageError, match=r"REKEYED to ChildState\.INSTALLED"):
        child.become(ChildState.INSTALLED)
