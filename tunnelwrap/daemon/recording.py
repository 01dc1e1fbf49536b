"""What Wireshark needs to show protected messages: keys in its tables, and a capture of IKE.

Nothing is written unless a human asked for it by name. The directory of the keys is a
configuration directory of Wireshark's: ``WIRESHARK_CONFIG_DIR=DIR wireshark FILE``.
Owns: the open files. A file that cannot be written ends the recording, never the tunnel.
"""

import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from struct import Struct
from typing import IO, Final

from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.suite import AhSuite
from tunnelwrap.errors import ConfigError
from tunnelwrap.iana import Encr, Integ
from tunnelwrap.ike.child_sa import ChildSa, SaKeys
from tunnelwrap.ike.outputs import KeysDerived
from tunnelwrap.path import Datagram, IpAddress
from tunnelwrap.path import Path as NetworkPath
from tunnelwrap.wire.esp import NON_ESP_MARKER
from tunnelwrap.wire.ip import checksum

logger = logging.getLogger(__name__)

IKE_TABLE: Final = "ikev2_decryption_table"
ESP_TABLE: Final = "esp_sa"
_PREFERENCES: Final = "esp.enable_encryption_decode: TRUE\n"
_PRIVATE: Final = 0o600

# The names that stand in Wireshark's tables; what it has no name for, it cannot open.
_IKE_ENCR: Final[dict[tuple[int, int | None], str]] = {
    (kind, bits): name.format(bits)
    for kind, name in (
        (Encr.AES_CBC, "AES-CBC-{} [RFC3602]"),
        (Encr.AES_CTR, "AES-CTR-{} [RFC5930]"),
        (Encr.AES_CCM_8, "AES-CCM-{} with 8 octet ICV [RFC5282]"),
        (Encr.AES_CCM_16, "AES-CCM-{} with 16 octet ICV [RFC5282]"),
        (Encr.AES_GCM_16, "AES-GCM-{} with 16 octet ICV [RFC5282]"),
    )
    for bits in (128, 192, 256)
}
_IKE_INTEG: Final[dict[int | None, str]] = {
    None: "NONE [RFC4306]",
    Integ.HMAC_SHA1_96: "HMAC_SHA1_96 [RFC2404]",
    Integ.HMAC_SHA2_256_128: "HMAC_SHA2_256_128 [RFC4868]",
    Integ.HMAC_SHA2_384_192: "HMAC_SHA2_384_192 [RFC4868]",
    Integ.HMAC_SHA2_512_256: "HMAC_SHA2_512_256 [RFC4868]",
}
_ESP_ENCR: Final[dict[int, str]] = {
    Encr.NULL: "NULL",
    Encr.AES_CBC: "AES-CBC [RFC3602]",
    Encr.AES_CTR: "AES-CTR [RFC3686]",
    Encr.AES_GCM_16: "AES-GCM with 16 octet ICV [RFC4106]",
}
_ESP_INTEG: Final[dict[int | None, str]] = {
    None: "NULL",
    Integ.HMAC_SHA1_96: "HMAC-SHA-1-96 [RFC2404]",
    Integ.HMAC_SHA2_256_128: "HMAC-SHA-256-128 [RFC4868]",
    Integ.HMAC_SHA2_384_192: "HMAC-SHA-384-192 [RFC4868]",
    Integ.HMAC_SHA2_512_256: "HMAC-SHA-512-256 [RFC4868]",
}

_PCAP_HEADER = Struct("<IHHiIII")
_PCAP_RECORD = Struct("<IIII")
_PCAP_MAGIC: Final = 0xA1B2C3D4
_LINKTYPE_RAW: Final = 101  # a packet begins with its IP header
_MAX_PACKET: Final = 0xFFFF
_UDP: Final = 17
_UDP_LENGTH: Final = 8
_TTL: Final = 64


class Recorder:
    """Writes keys and messages down, each only if it is given a place.

    Args:
        key_log: directory for the keys; None: they are written nowhere.
        pcap: file for the IKE messages as they travel; None: nowhere.

    Raises:
        ConfigError: a file cannot be written.
    """

    def __init__(self, key_log: Path | None = None, pcap: Path | None = None) -> None:
        self._tables: dict[str, IO[bytes]] = {}
        self._pcap: IO[bytes] | None = None
        try:
            if key_log is not None:
                self._open_tables(key_log)
            if pcap is not None:
                self._pcap = _open(pcap, os.O_TRUNC)
                self._pcap.write(
                    _PCAP_HEADER.pack(_PCAP_MAGIC, 2, 4, 0, 0, _MAX_PACKET, _LINKTYPE_RAW)
                )
        except OSError as error:
            raise ConfigError([f"cannot record: {error}"]) from error

    @property
    def takes_keys(self) -> bool:
        """Whether keys are to be written down."""
        return bool(self._tables)

    def ike_keys(self, derived: KeysDerived) -> None:
        """Write down the keys of an IKE SA."""
        suite, keys = derived.suite, derived.keys
        encr = _IKE_ENCR.get((suite.encr, suite.key_bits))
        integ = _IKE_INTEG.get(suite.integ)
        if encr is None or integ is None:
            self._miss(IKE_TABLE, str(suite))
            return
        spis = (derived.spi_i.hex(), derived.spi_r.hex())
        ciphers = (_hex(keys.sk_ei), _hex(keys.sk_er), f'"{encr}"')
        checks = (_hex(keys.sk_ai), _hex(keys.sk_ar), f'"{integ}"')
        self._write(IKE_TABLE, ",".join((*spis, *ciphers, *checks)))

    def child_keys(self, child: ChildSa) -> None:
        """Write down the keys of a Child SA, one line for each direction; AH hides nothing."""
        if isinstance(child.suite, AhSuite):
            return
        encr, integ = _ESP_ENCR.get(child.suite.encr), _ESP_INTEG.get(child.suite.integ)
        if encr is None or integ is None:
            self._miss(ESP_TABLE, str(child.suite))
            return
        version = f"IPv{child.path.peer.ip.version}"
        pairs: tuple[tuple[int, SaKeys], ...] = (
            (child.spi_in, child.keys_in),
            (child.spi_out, child.keys_out),
        )
        for spi, keys in pairs:  # any addresses: NATs and new paths change them, the SPI stays
            fields = (
                *(version, "*", "*", f"0x{spi:08x}"),
                *(encr, _hex_or_none(keys.encryption)),
                *(integ, _hex_or_none(keys.integrity)),
            )
            self._write(ESP_TABLE, ",".join(f'"{field}"' for field in fields))

    def message(self, datagram: Datagram, *, is_ours: bool) -> None:
        """Write down an IKE message as it travels, as if UDP carried it."""
        if self._pcap is None:
            return
        packet = as_udp(datagram, is_ours=is_ours)
        if len(packet) > _MAX_PACKET:  # fits a stream, but no IP packet
            return
        microseconds = int(datetime.now(UTC).timestamp() * 1_000_000)
        seconds, rest = divmod(microseconds, 1_000_000)
        record = _PCAP_RECORD.pack(seconds, rest, len(packet), len(packet)) + packet
        try:
            self._pcap.write(record)
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the files."""
        for file in (*self._tables.values(), *([self._pcap] if self._pcap else [])):
            file.close()
        self._tables, self._pcap = {}, None

    def _open_tables(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._tables = {
            name: _open(directory / name, os.O_APPEND) for name in (IKE_TABLE, ESP_TABLE)
        }
        preferences = directory / "preferences"
        if not preferences.exists():
            preferences.write_text(_PREFERENCES)
        logger.warning(
            "ALL KEYS ARE WRITTEN TO %s: whoever reads it reads everything in this tunnel",
            directory,
        )

    def _write(self, table: str, line: str) -> None:
        file = self._tables.get(table)
        if file is None:
            return
        try:
            file.write(line.encode() + b"\n")
        except OSError as error:
            self._give_up(error)

    def _miss(self, table: str, suite: str) -> None:
        if self.takes_keys:
            logger.warning("Wireshark's %s has no name for %s: keys not written", table, suite)

    def _give_up(self, error: OSError) -> None:
        logger.warning("recording ends: %s", error)
        self.close()


def as_udp(datagram: Datagram, *, is_ours: bool) -> bytes:
    """An IKE message as an IP packet with UDP, whatever carries it.

    One of the ports must be 500 or 4500, or Wireshark does not see IKE: on other carriers and with
    other ports the lower one, which is the gateway's, is shown as such.
    """
    path = datagram.path
    local, peer = _ports(path)
    ends = (path.local.ip, path.peer.ip, local, peer)
    source, target, source_port, target_port = (
        ends if is_ours else (path.peer.ip, path.local.ip, peer, local)
    )
    body = (NON_ESP_MARKER if path.has_marker else b"") + datagram.octets
    length = _UDP_LENGTH + len(body)
    ports = source_port.to_bytes(2, "big") + target_port.to_bytes(2, "big")
    udp = ports + (length & 0xFFFF).to_bytes(2, "big") + b"\0\0" + body
    return _ip_header(source, target, udp) + _with_sum(udp, source, target)


def _ports(path: NetworkPath) -> tuple[int, int]:
    local, peer = path.local.port, path.peer.port
    known = 4500 if path.has_marker else 500
    if known in (local, peer) and not path.carrier.is_reliable:
        return local, peer
    return (known, peer) if local < peer else (local, known)


def _ip_header(source: IpAddress, target: IpAddress, udp: bytes) -> bytes:
    addresses = source.packed + target.packed
    if source.version == 6:
        length = (len(udp) & 0xFFFF).to_bytes(2, "big")
        return bytes([0x60, 0, 0, 0]) + length + bytes([_UDP, _TTL]) + addresses
    length = ((20 + len(udp)) & 0xFFFF).to_bytes(2, "big")
    before, after = b"\x45\0" + length + b"\0\0\x40\0" + bytes([_TTL, _UDP]), addresses
    return before + checksum(before + b"\0\0" + after).to_bytes(2, "big") + after


def _with_sum(udp: bytes, source: IpAddress, target: IpAddress) -> bytes:
    """The checksum over the pseudo header. RFC 768, RFC 8200 §8.1."""
    pseudo = source.packed + target.packed + len(udp).to_bytes(4, "big") + bytes([0, 0, 0, _UDP])
    total = checksum(pseudo + udp) or 0xFFFF  # 0 would say that there is none
    return udp[:6] + total.to_bytes(2, "big") + udp[8:]


def _open(path: Path, flags: int) -> IO[bytes]:
    """Open a file that only its owner reads; unbuffered, so that a crash loses nothing."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, _PRIVATE)
    os.fchmod(descriptor, _PRIVATE)
    return os.fdopen(descriptor, "wb", buffering=0)


def _hex_or_none(secret: Secret) -> str:
    return f"0x{_hex(secret)}" if len(secret) else ""


def _hex(secret: Secret) -> str:
    return secret.reveal().hex()
