"""``--key-log`` and ``--pcap``, with tshark as the judge; and no key anywhere without them.

The hosts are those of ``tests.kit.daemons``.
"""

import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.kit.captures import Capture, tshark
from tests.kit.daemons import SITE, Hosts, Issued, Toml, Transfer, hosts, run_tunnelwrap
from tests.kit.pair import Pair
from tests.kit.policies import client as client_policy
from tests.kit.policies import gateway as gateway_policy
from tests.kit.policies import quiet
from tunnelwrap.daemon.recording import ESP_TABLE, IKE_TABLE, Recorder
from tunnelwrap.ike.endpoint import Endpoint
from tunnelwrap.path import Datagram

pytestmark = pytest.mark.root

SUITES = {
    "gcm": ("aes256gcm16-prfsha384-x25519", "aes128gcm16"),
    "cbc": ("aes128-sha256-prfsha256-x25519", "aes256-sha512"),
}


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Issued:
    return Issued.by_init(tmp_path_factory.mktemp("issued"))


@pytest.fixture
def net(issued: Issued, tmp_path: Path) -> Iterator[Hosts]:
    with hosts(issued, tmp_path) as made:
        yield made


IKE_AUTH_REQUEST = "35 46,35,"  # exchange type; SK, IDi and so on
ESTABLISHED = "35 46,36,"  # SK, IDr


def ike_messages(file: Path, keys: Path | None) -> str:
    """The messages of a capture as tshark reads them: exchange and payload types, an address."""
    fields = ("isakmp.exchangetype", "isakmp.typepayload", "isakmp.cfg.attr.internal_ip4_address")
    rows = tshark(file, display="isakmp", fields=fields, config=keys)
    return "\n".join(" ".join(row) for row in rows)


def inner_sources(file: Path, keys: Path | None, tls: Path | None) -> set[str]:
    """Where the packets of a capture come from that tshark finds inside of ESP."""
    rows = tshark(file, display="esp", fields=("ip.src",), config=keys, keylog=tls)
    return {source for (sources,) in rows for source in sources.split(",")}


@pytest.mark.parametrize(
    ("carrier", "suites"), [("udp", "gcm"), ("udp", "cbc"), ("tcp", "gcm"), ("tls", "cbc")]
)
def test_tshark_reads_ike_auth_and_esp_with_the_keys_and_nothing_without(
    net: Hosts, tmp_path: Path, carrier: str, suites: str
) -> None:
    ike, esp = SUITES[suites]
    chosen: Toml = {"ike": [ike], "child": {"esp": [esp]}}
    keys, pcap, tls = (tmp_path / name for name in ("keys", "ike.pcap", "tls.keys"))
    net.serve({"connections": {"clients": chosen}})
    with Capture(net.router.name, "client", tmp_path / "wire.pcap") as wire:
        options = ("--carrier", carrier, "--key-log", str(keys), "--pcap", str(pcap))
        client = net.connect({"connection": chosen}, *options, "--tls-keylog", str(tls))
        Transfer((net.site, SITE), net.client, 1 << 14).finish()
        address = str(client.named("established")[0]["addresses"][0])
        client.stop()

    assert "ALL KEYS ARE WRITTEN TO" in client.log
    assert IKE_AUTH_REQUEST in ike_messages(pcap, keys)
    assert address in re.search(f"{ESTABLISHED}.*", ike_messages(pcap, keys))[0]
    assert IKE_AUTH_REQUEST not in ike_messages(pcap, None)
    keylog = tls if carrier == "tls" else None
    assert {address, SITE} <= inner_sources(wire.file, keys, keylog)
    assert not {address, SITE} & inner_sources(wire.file, None, keylog)
    for file in (pcap, *(keys / name for name in (IKE_TABLE, ESP_TABLE))):
        assert file.stat().st_mode & 0o077 == 0, "only its owner reads it"


def test_no_key_is_anywhere_where_none_was_asked_for(net: Hosts, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    net.serve({}, "--debug", "--key-log", str(keys))
    client = net.connect({}, "--debug", "--pcap", str(tmp_path / "ike.pcap"))
    status = run_tunnelwrap(net.client, "status", client.file, "--json").stdout
    client.stop()

    counters = json.loads(status)["counters"]
    assert counters["notify_received_nat_detection_source_ip"] >= 1
    secrets = keys_in(keys)
    assert len(secrets) >= 4
    assert "KEYS" not in client.log
    told = [status.encode(), *(file.read_bytes() for file in files_beside(keys))]
    assert len(told) > 6
    for secret in secrets:
        for text in told:
            assert secret.hex() not in text.decode(errors="replace").lower()
            assert secret not in text


def keys_in(directory: Path) -> list[bytes]:
    """What stands in the tables, of 16 octets or more; the hexadecimal SPIs are shorter."""
    text = "".join((directory / name).read_text() for name in (IKE_TABLE, ESP_TABLE))
    return [bytes.fromhex(digits) for digits in re.findall(r"[0-9a-f]{32,}", text)]


def files_beside(keys: Path) -> list[Path]:
    """All files of the test but those of the keys."""
    return [file for file in keys.parent.rglob("*") if file.is_file() and keys not in file.parents]


@pytest.mark.parametrize("suites", SUITES)
def test_rekeyed_ike_sas_are_read_too(tmp_path: Path, suites: str) -> None:
    """Two cores in memory, and tshark: each INFORMATIONAL is a delete of what was rekeyed."""
    ike, esp = SUITES[suites]
    pair = Pair(quiet(client_policy(ike, esp)), quiet(gateway_policy(ike, esp)), exports_keys=True)
    pair.connect()
    pair.do(pair.i, Endpoint.rekey)
    pair.run(5.0)
    pair.do(pair.r, Endpoint.rekey)
    pair.run(5.0)
    with closing(Recorder(tmp_path / "keys", tmp_path / "ike.pcap")) as recorder:
        for derived in pair.i.keys:
            recorder.ike_keys(derived)
        for datagram in pair.i.sent:
            recorder.message(datagram, is_ours=True)
        for datagram in pair.r.sent:
            recorder.message(Datagram(pair.path, datagram.octets), is_ours=False)

    messages = ike_messages(tmp_path / "ike.pcap", tmp_path / "keys").splitlines()
    assert len(pair.i.keys) == 3
    assert sum(line.startswith("37 46,42") for line in messages) == 2  # SK, D
    assert not [line for line in messages if line.strip() in ("35 46", "36 46")]


def test_a_place_that_cannot_be_written_is_named(net: Hosts, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    client = net.start_client({}, "--key-log", str(tmp_path / "file" / "keys"))

    assert client.ends() == 1
    assert "cannot record" in client.log
