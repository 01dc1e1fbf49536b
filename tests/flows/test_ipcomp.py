"""IPComp: compression agreed with a Child SA. RFC 7296 §2.22, RFC 3173."""

from dataclasses import replace

import pytest

from tests.flows.scripted import ScriptedInitiator, ScriptedResponder
from tests.kit.pair import Pair
from tests.kit.policies import client, gateway, quiet
from tunnelwrap.iana import IpcompTransform, NotifyType
from tunnelwrap.ike.child_sa import ChildSa, Cpis
from tunnelwrap.ike.outputs import ChildRefused, Closed, InstallChildSa
from tunnelwrap.ike.policy import ConnectionPolicy
from tunnelwrap.path import Carrier
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import Notify, Payload

THEIRS = 0x1234


def with_ipcomp(policy: ConnectionPolicy, *, is_wanted: bool = True) -> ConnectionPolicy:
    return quiet(replace(policy, child=replace(policy.child, ipcomp=is_wanted)))


def connected(**options: object) -> Pair:
    pair = Pair(with_ipcomp(client()), with_ipcomp(gateway()), compresses=True, **options)
    pair.connect(until=2.0)
    assert pair.agreed()
    return pair


def both(pair: Pair) -> tuple[Cpis | None, Cpis | None]:
    ours, theirs = pair.i.plane.sending, pair.r.plane.sending
    assert ours is not None
    assert theirs is not None
    return ours.cpis, theirs.cpis


def are_compressed(pair: Pair) -> bool:
    ours, theirs = both(pair)
    assert ours is not None
    assert theirs is not None
    assert (ours.inbound, ours.outbound) == (theirs.outbound, theirs.inbound)
    return ours.inbound != ours.outbound and all(
        256 <= each.inbound <= 61439 for each in both(pair)
    )


@pytest.mark.rfc("7296", "2.22")
@pytest.mark.rfc("8221", "7")
@pytest.mark.rfc("3173", "4")
def test_both_say_where_they_take_it() -> None:
    assert are_compressed(connected())


@pytest.mark.rfc("7296", "2.22")
@pytest.mark.parametrize("who", ["i", "r"])
def test_a_further_child_sa_has_cpis_of_its_own(who: str) -> None:
    pair = connected()
    before = both(pair)
    policy = (pair.policy if who == "i" else pair.responder).child

    pair.do(getattr(pair, who), lambda e, sa, now: e.create_child(sa, policy, now))
    pair.run(2.0)

    assert len(pair.i.plane.installed) == 2
    assert are_compressed(pair)
    assert both(pair)[0] != before[0]


@pytest.mark.rfc("7296", "2.22")
@pytest.mark.parametrize("who", ["i", "r"])
def test_so_has_the_one_that_rekeys_it(who: str) -> None:
    pair = connected()
    before, host = both(pair), getattr(pair, who)
    [spi] = host.plane.installed

    pair.do(host, lambda e, sa, now: e.limit_reached(sa, spi, now, is_hard=False))
    pair.run(20.0)

    assert pair.agreed()
    assert are_compressed(pair)
    assert both(pair)[0] != before[0]


@pytest.mark.rfc("7296", "2.22")
@pytest.mark.parametrize(("ours", "theirs"), [(True, False), (False, True), (False, False)])
def test_it_needs_both(ours: bool, theirs: bool) -> None:  # noqa: FBT001 (columns)
    policies = with_ipcomp(client(), is_wanted=ours), with_ipcomp(gateway(), is_wanted=theirs)
    pair = Pair(*policies, compresses=True)
    pair.connect()

    assert both(pair) == (None, None)


def test_it_needs_a_data_plane_that_can() -> None:
    pair = Pair(with_ipcomp(client()), with_ipcomp(gateway()), compresses=False)
    pair.connect()

    assert both(pair) == (None, None)


def test_no_stream_leads_there() -> None:
    assert both(connected(carrier=Carrier.TCP)) == (None, None)


# --- message by message -----------------------------------------------------------------------


def notify(cpi: int, transform: int = IpcompTransform.DEFLATE, attributes: bytes = b"") -> Notify:
    data = cpi.to_bytes(2, "big") + bytes([transform]) + attributes
    return Notify.of(NotifyType.IPCOMP_SUPPORTED, data)


def answered(*offers: Notify) -> tuple[Message, ChildSa]:
    """What a responder that wants it makes of these offers."""
    peer = ScriptedInitiator(quiet(client()), with_ipcomp(gateway()), compresses=True)
    response = peer.connect(lambda payloads: [*offers, *payloads])
    install = peer.fact(InstallChildSa)
    assert response is not None
    assert install is not None
    return response, install.child


@pytest.mark.rfc("7296", "2.22")
def test_of_several_it_is_deflate() -> None:
    lzs, odd = notify(THEIRS + 1, IpcompTransform.LZS), notify(THEIRS + 2, attributes=b"?")
    short = Notify.of(NotifyType.IPCOMP_SUPPORTED, b"\1")

    response, child = answered(lzs, short, odd, notify(THEIRS), notify(THEIRS + 3))

    assert child.cpis is not None
    assert child.cpis.outbound == THEIRS
    told = [n for n in response.all(Notify) if n.notify == NotifyType.IPCOMP_SUPPORTED]
    assert told == [notify(child.cpis.inbound)]


@pytest.mark.rfc("7296", "2.22")
@pytest.mark.parametrize(
    "offer", [notify(THEIRS, IpcompTransform.LZS), notify(2), notify(255)], ids=["lzs", "2", "255"]
)
def test_what_we_cannot_do_is_not_agreed(offer: Notify) -> None:
    response, child = answered(offer)

    assert child.cpis is None
    assert response.notify(NotifyType.IPCOMP_SUPPORTED) is None


def choosing(choice: Notify, *, is_wanted: bool) -> ScriptedResponder:
    """A responder that answers an offer, or none, with this choice."""
    wishes = with_ipcomp(client(), is_wanted=is_wanted)
    peer = ScriptedResponder(wishes, quiet(gateway()), compresses=True)

    def change(payloads: list[Payload]) -> list[Payload]:
        return [*payloads, choice]

    peer.connect(change)
    return peer


@pytest.mark.rfc("7296", "2.22")
def test_our_offer_is_taken() -> None:
    install = choosing(notify(THEIRS), is_wanted=True).fact(InstallChildSa)

    assert install is not None
    assert install.child.cpis is not None
    assert install.child.cpis.outbound == THEIRS


@pytest.mark.rfc("7296", "2.22")
@pytest.mark.parametrize(
    ("choice", "is_wanted"),
    [(notify(THEIRS, IpcompTransform.LZS), True), (notify(1), True), (notify(THEIRS), False)],
    ids=["other-transform", "no-cpi", "not-offered"],
)
def test_nothing_else_can_be_chosen(choice: Notify, is_wanted: bool) -> None:  # noqa: FBT001 (column)
    peer = choosing(choice, is_wanted=is_wanted)

    assert peer.fact(InstallChildSa) is None
    assert peer.fact(ChildRefused) is None
    closed = peer.fact(Closed)
    assert closed is not None
    assert closed.reason == "the peer chose a compression that was not offered"
