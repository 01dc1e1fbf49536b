"""strongSwan: a connection for swanctl, and one for NetworkManager's plugin."""

import json
from collections.abc import Iterable, Iterator

from tunnelwrap.profile import Fallback


def swanctl_conf(fallback: Fallback) -> str:
    """A file for /etc/swanctl/conf.d."""
    return f"""\
{fallback.reasons("#")}#
#     swanctl --load-all && swanctl --initiate --child {fallback.name}

connections {{
  {fallback.name} {{
    version = 2
    remote_addrs = {fallback.wrap.listen}
{_lines(_road(fallback), "    ")}\
    # Streams have a peer behind them that has gone without a word, too.
    dpd_delay = 30s
    local {{
{_lines(_local(fallback), "      ")}\
    }}
    remote {{
      auth = {_kind(fallback)}
      id = {_quoted(fallback.remote_id)}
    }}
    children {{
      {fallback.name} {{
{_lines(_child(fallback), "        ")}\
      }}
    }}
  }}
}}
"""


def nmconnection(fallback: Fallback) -> str:
    """A file for /etc/NetworkManager/system-connections, for its strongSwan plugin."""
    return f"""\
{fallback.reasons("#")}# The file must be root's, and nobody else's to read. The plugin wants a
# pre-shared key of 20 characters or more.
#
#     nmcli connection reload && nmcli --ask connection up {fallback.name}

[connection]
id={fallback.name}
type=vpn

[vpn]
service-type=org.freedesktop.NetworkManager.strongswan
{_lines(_vpn(fallback))}
[ipv4]
method=auto

[ipv6]
method=auto
"""


def _road(fallback: Fallback) -> Iterator[str]:
    """How the wrapper is reached."""
    if not fallback.has_usual_ports:
        # A remote port other than 500 has IKE with the marker from the first message on, and then
        # ours must be the one that has it, too.
        yield f"remote_port = {fallback.wrap.nat_port}"
        yield "local_port = 4500"
    yield "# ESP by itself cannot pass; and the wrapper's address never changes."
    yield "encap = yes"
    yield "mobike = no"
    if not fallback.local_ts:
        yield "vips = 0.0.0.0, ::"


def _local(fallback: Fallback) -> Iterator[str]:
    yield f"auth = {_kind(fallback)}"
    yield f"id = {_quoted(fallback.local_id)}"
    if fallback.certificate is not None:
        yield f"certs = {_quoted(fallback.certificate)}"


def _child(fallback: Fallback) -> Iterator[str]:
    if fallback.local_ts:
        yield f"local_ts = {', '.join(fallback.local_ts)}"
    yield f"remote_ts = {', '.join(fallback.remote_ts)}"
    yield "dpd_action = restart"


def _vpn(fallback: Fallback) -> Iterator[str]:
    """NetworkManager's data items, which the plugin reads."""
    yield f"address={fallback.wrap.listen}"
    if not fallback.has_usual_ports:
        yield f"server-port={fallback.wrap.nat_port}"
    yield f"local-identity={fallback.local_id}"
    yield f"remote-identity={fallback.remote_id}"
    if fallback.uses_certificate:
        yield "method=cert"
        yield "cert-source=file"
        yield f"usercert={fallback.certificate}"
        yield f"userkey={fallback.key}"
    else:
        yield "method=psk"
    yield f"remote-ts={';'.join(fallback.remote_ts)}"
    yield "encap=yes"
    yield "virtual=yes"
    yield "password-flags=1"


def _lines(lines: Iterable[str], indent: str = "") -> str:
    return "".join(f"{indent}{line}\n" for line in lines)


def _kind(fallback: Fallback) -> str:
    return "pubkey" if fallback.uses_certificate else "psk"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
