"""A real nginx as the reverse proxy before a gateway: it has the TLS port and a site of its own."""

import re
from pathlib import Path

from tests.kit.daemons import wait_until
from tests.kit.netns import Namespace

SITE = "a site behind which nobody expects a tunnel"

_README = Path(__file__).parents[2] / "README.md"
_CONFIGURATION = """\
user root;
daemon off;
pid {home}/nginx.pid;
error_log {home}/error.log warn;
events {{ }}
http {{
    log_format seen "$proxy_protocol_addr $status";
    access_log off;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    server {{
        listen 443 ssl;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        location / {{ return 200 "{site}"; default_type text/html; }}
{location}
    }}
}}
"""


def start_behind(host: Namespace, home: Path, tls: dict[str, str]) -> None:
    """Start it on a host, which ends it, as the web server behind a gateway's TLS port.

    Args:
        host: where; it is told for whom connections are.
        home: a directory for its files.
        tls: certificate and key, as in a gateway's configuration.
    """
    home.mkdir()
    text = _CONFIGURATION.format(home=home, site=SITE, location="", **tls)
    text = text.replace("listen 443 ssl;", "listen 127.0.0.1:9443 ssl proxy_protocol;")
    (home / "nginx.conf").write_text(text.replace("access_log off", f"access_log {home}/log seen"))
    host.popen("nginx", "-p", str(home), "-c", str(home / "nginx.conf"), log=home / "nginx.log")
    wait_until("nginx serves", (home / "nginx.pid").exists)


def start(host: Namespace, home: Path, tls: dict[str, str], path: str) -> None:
    """Start it on a host, which ends it, and wait until it serves.

    Args:
        host: where.
        home: a directory for its files.
        tls: certificate and key, as in a gateway's configuration.
        path: the secret one, which is passed on as the README has it.
    """
    home.mkdir()
    file = home / "nginx.conf"
    location = re.search(r"\n    location = .*?\n    }\n", _README.read_text(), re.DOTALL)
    assert location is not None
    passed_on = re.sub(r"/\w{20}(?= \{)", path, location[0])
    assert path in passed_on
    file.write_text(_CONFIGURATION.format(home=home, site=SITE, location=passed_on, **tls))
    host.popen("nginx", "-p", str(home), "-c", str(file), log=home / "nginx.log")
    wait_until("nginx serves", lambda: host.succeeds("curl", "-sk", "https://127.0.0.1/"))
