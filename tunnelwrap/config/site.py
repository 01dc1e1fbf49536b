"""What a configuration may say of the web site on the TLS ports, and of the gate in it."""

from typing import Literal, Self

from pydantic import model_validator

from tunnelwrap.config.credentials import (
    AuthorityCertificates,
    OwnCertificates,
    OwnKey,
    WebPath,
    Word,
    check_key,
)
from tunnelwrap.config.fields import Directory, Section, SiteAddress, wrong


class Cover(Section):
    """The web site that the world sees: files, or what a web server behind us has."""

    files: Directory | None = None
    proxy: SiteAddress | None = None
    send_proxy: Literal["v1", "v2"] | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.files is None) == (self.proxy is None):
            raise wrong("one of files and proxy")
        if self.send_proxy and self.proxy is None:
            raise wrong("proxy beside send_proxy")
        return self


class Gate(Section):
    """What must be shown in TLS before there is a tunnel."""

    word: Word | None = None
    path: WebPath | None = None
    client_ca: AuthorityCertificates | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        check_one(word=self.word, path=self.path, client_ca=self.client_ca)
        return self


class ShownAtGate(Section):
    """What a client shows there."""

    word: Word | None = None
    path: WebPath | None = None
    certificate: OwnCertificates | None = None
    key: OwnKey | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        check_one(word=self.word, path=self.path, certificate=self.certificate or self.key)
        check_key(self.certificate, self.key)
        return self


def check_one(**kinds: object) -> None:
    """Check that there is one kind of secret."""
    if sum(kind is not None for kind in kinds.values()) != 1:
        raise wrong(f"one of {', '.join(kinds)}")
