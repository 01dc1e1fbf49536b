"""The TLS settings of the gateway, and the files that they are made of."""

import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from tests.kit.certs import entity, key
from tests.unit.demux.gateway import write_identity
from tunnelwrap.demux.shown import server_context
from tunnelwrap.errors import ConfigError


@pytest.mark.rfc("9329", "B.1")
def test_no_client_certificate_is_asked_for(tmp_path: Path) -> None:
    context = server_context(*write_identity(tmp_path))
    assert context.verify_mode is ssl.CERT_NONE
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        server_context(tmp_path / "a.pem", tmp_path / "a.key")
    assert caught.value.problems == [
        f"{tmp_path}/a.pem: No such file or directory",
        f"{tmp_path}/a.key: No such file or directory",
    ]


def test_files_that_do_not_serve(tmp_path: Path) -> None:
    certificate_file, key_file = write_identity(tmp_path)
    locked = key("p256", 7).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    other = entity("other", None, number=8).key_pem
    for octets in (locked, other, b"", certificate_file.read_bytes()):
        key_file.write_bytes(octets)
        with pytest.raises(ConfigError, match=r"server\.pem with .*server\.key: (key|no cert)"):
            server_context(certificate_file, key_file)
