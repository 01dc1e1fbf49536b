"""libreswan: a connection for ipsec.conf."""

from collections.abc import Iterator

from tunnelwrap.auth.identity import Identity
from tunnelwrap.iana import IdType
from tunnelwrap.profile import Fallback


def ipsec_conf(fallback: Fallback) -> str:
    """A file for /etc/ipsec.d."""
    lines = "".join(f"    {line}\n" for line in _options(fallback))
    return f"""\
{fallback.reasons("#")}#
#     ipsec add {fallback.name} && ipsec up {fallback.name}

conn {fallback.name}
{lines}"""


def _options(fallback: Fallback) -> Iterator[str]:
    yield "ikev2=insist"
    yield "left=%defaultroute"
    yield f"leftid={_identity(fallback.local_id)}"
    yield f"right={fallback.wrap.listen}"
    yield f"rightid={_identity(fallback.remote_id)}"
    if fallback.uses_certificate:
        yield "authby=rsasig,ecdsa"
        yield f"leftcert={fallback.certificate}"
    else:
        yield "authby=secret"
    if fallback.local_ts:
        yield from _subnets("left", fallback.local_ts)
    else:
        yield "leftmodecfgclient=yes"
        yield "narrowing=yes"
    yield from _subnets("right", fallback.remote_ts)
    # ESP by itself cannot pass; and the wrapper's address never changes.
    yield "encapsulation=yes"
    yield "mobike=no"
    yield "dpddelay=30"
    yield "auto=ignore"


def _subnets(side: str, networks: tuple[str, ...]) -> Iterator[str]:
    if len(networks) == 1:
        yield f"{side}subnet={networks[0]}"
    else:
        yield f'{side}subnets="{" ".join(networks)}"'


def _identity(text: str) -> str:
    """A name with @ before it, or libreswan would look it up and take its address."""
    kind = Identity.parse(text).type
    if kind == IdType.FQDN:
        return "@" + text.lstrip("@")
    return f'"{text}"' if kind == IdType.DER_ASN1_DN else text
