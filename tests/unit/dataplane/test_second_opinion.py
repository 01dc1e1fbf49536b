"""tshark, given the keys, checks the ICVs of what we seal and decrypts it.

AES-CCM, ChaCha20-Poly1305, GMAC and XCBC are not among what it knows.
"""

import subprocess
from pathlib import Path

import pytest
from scapy.layers.inet import IP
from scapy.packet import Raw
from scapy.utils import wrpcap

from tests.unit.dataplane.samples import FAR, NEAR, SUITES, keys_of, suite_of, udp
from tunnelwrap.dataplane.esp import IPV4, OutboundSa
from tunnelwrap.dataplane.transform import BY_COLUMN
from tunnelwrap.iana import Encr, Integ

SPI = 0x0BADCAFE
ENCRYPTION = {
    Encr.AES_CBC: "AES-CBC [RFC3602]",
    Encr.AES_CTR: "AES-CTR [RFC3686]",
    Encr.AES_GCM_16: "AES-GCM with 16 octet ICV [RFC4106]",
    Encr.NULL: "NULL",
}
AUTHENTICATION = {
    None: "NULL",
    Integ.HMAC_SHA1_96: "HMAC-SHA-1-96 [RFC2404]",
    Integ.HMAC_SHA2_256_128: "HMAC-SHA-256-128 [RFC4868]",
    Integ.HMAC_SHA2_384_192: "HMAC-SHA-384-192 [RFC4868]",
    Integ.HMAC_SHA2_512_256: "HMAC-SHA-512-256 [RFC4868]",
}
KNOWN = [
    name
    for name, (encr, _, integ) in SUITES.items()
    if encr in ENCRYPTION and integ in AUTHENTICATION
]


def security_association(name: str) -> str:
    """tshark's table entry for the keys of a suite."""
    suite = suite_of(name)
    keys = keys_of(suite)
    fields = (
        *("IPv4", "*", "*", f"0x{SPI:08x}"),
        *(ENCRYPTION[Encr(suite.encr)], _hexadecimal(keys.encryption.reveal())),
        *(AUTHENTICATION[suite.integ and Integ(suite.integ)],),
        *(_hexadecimal(keys.integrity.reveal()), "32-bit", "0"),
    )
    return "uat:esp_sa:" + ",".join(f'"{field}"' for field in fields)


def _hexadecimal(key: bytes) -> str:
    return f"0x{key.hex()}" if key else ""


@pytest.mark.parametrize("name", KNOWN)
def test_tshark_opens_what_we_seal(name: str, tmp_path: Path) -> None:
    suite, inner = suite_of(name, uses_esn=False), udp(301)
    outbound = OutboundSa(SPI, suite, keys_of(suite), uses_esn=False)
    slot = outbound.slot(len(inner))
    arena, ends = memoryview(bytearray(BY_COLUMN * slot)), []
    for start in range(0, len(arena), slot):
        arena[start + outbound.head : start + outbound.head + len(inner)] = inner
    outbound.seal_batch(arena, 0, (BY_COLUMN, len(inner), IPV4), ends)
    outer = IP(src="192.0.2.1", dst="192.0.2.2", proto=50)
    wrpcap(
        str(tmp_path / "esp.pcap"),
        [outer / Raw(bytes(arena[end - slot + 2 : end])) for end in ends],
    )

    assert (
        read(tmp_path / "esp.pcap", name)
        == [[f"192.0.2.1,{NEAR}", f"192.0.2.2,{FAR}", "2000", str(301 + 8), "1"]] * BY_COLUMN
    )


def read(capture: Path, name: str) -> list[list[str]]:
    """Addresses of both IP headers, the inner port and length, whether the ICV is right."""
    command = ["tshark", "-n", "-r", str(capture), "-T", "fields"]
    for field in ("ip.src", "ip.dst", "udp.dstport", "udp.length", "esp.icv_good"):
        command += ["-e", field]
    for option in ("enable_encryption_decode:TRUE", "enable_authentication_check:TRUE"):
        command += ["-o", f"esp.{option}"]
    command += ["-o", security_association(name)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [line.split("\t") for line in done.stdout.splitlines()]
