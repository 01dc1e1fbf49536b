"""What ``tunnelwrap fallback export`` writes, read by the daemons that it is for."""

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.interop.lan import INNER_NETWORK, Lan, ping
from tests.interop.settings import GATEWAY
from tests.interop.wrapping import SECRET, wrapped
from tests.kit.strongswan import render
from tests.kit.trixie import trixie
from tunnelwrap.profile.export import export

pytestmark = [pytest.mark.root, pytest.mark.interop]

LIBRESWAN = "/usr/libexec/ipsec"
ROAD_WARRIOR = {
    "local_id": "client0.example.org",
    "remote_id": GATEWAY,
    "remote_ts": (INNER_NETWORK,),
}


def test_strongswan_connects_by_it_where_udp_is_dropped(lan: Lan, tmp_path: Path) -> None:
    with wrapped(lan, tmp_path, carriers=["udp", "tls"]) as ends:
        ends.drop_udp()
        file = tmp_path / "wrap" / "wrap0.toml"
        made = export("strongswan", file, tmp_path / "out", ROAD_WARRIOR, datetime.now(UTC))
        # The first way's; a secret without identities is for all.
        secrets = render({"secrets": {"ike-1": {"secret": f'"{SECRET}"'}}})
        both = tmp_path / "out" / "swanctl.conf"
        both.write_text(made.configuration.read_text() + secrets)

        loaded = ends.client.swanctl("--load-all", "--clear", "--noprompt", "--file", str(both))
        assert loaded.returncode == 0, loaded.stdout
        assert "loaded connection 'wrap0'" in loaded.stdout
        done = ends.client.initiate("wrap0", 30)

        assert done.returncode == 0, f"{done.stdout}\n{ends.wrap.log}"
        assert ping(lan, tries=10), ends.wrap.log
        assert [way["carrier"] for way in ends.wrap.ways] == ["tls"]


@pytest.mark.parametrize("proof", ["psk", "certificate"])
@pytest.mark.parametrize("local_ts", [(), ("10.2.0.0/16",), ("10.2.0.0/16", "10.3.0.0/16")])
def test_libreswan_reads_it(tmp_path: Path, proof: str, local_ts: tuple[str, ...]) -> None:
    file = tmp_path / "office.toml"
    file.write_text('[wrap]\ngateway = "vpn.example.org"\n')
    own = {"auth": "certificate", "certificate": "alice"} if proof == "certificate" else {}
    options = {**ROAD_WARRIOR, "local_id": "alice@example.org", "local_ts": local_ts, **own}
    made = export("libreswan", file, tmp_path / "out", options, datetime.now(UTC))

    line = [f"{LIBRESWAN}/addconn", "--checkconfig", "--config", str(made.configuration)]
    done = subprocess.run(
        trixie().command(*line, folders=[tmp_path]),
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )

    assert (done.returncode, done.stdout) == (0, "")
