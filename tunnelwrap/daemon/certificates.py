"""The certificate on the TLS ports, for as long as a gateway or relay runs: from files, or by ACME.

Once a minute it is seen whether files have changed, or a certificate is to be renewed. New
handshakes get the new one, and connections keep what they have.

Flow: a keeper -> ``demux.shown.Shown`` -> listeners; by ACME also ``daemon.acme`` in a thread.
"""

import asyncio
import logging
import re
import ssl
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import SystemRandom
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, TypeVar, cast

from cryptography import x509

from tunnelwrap.config.model import Acme, Gateway, StreamPorts
from tunnelwrap.crypto.x509 import load_certificates, names_server, server_names
from tunnelwrap.demux.http_proof import proving
from tunnelwrap.demux.shown import Shown, proof_context, server_context
from tunnelwrap.errors import CertificateError, ConfigError, StoreError, TransportError
from tunnelwrap.store.secret_file import write_private

if TYPE_CHECKING:  # it is slow to load, for who has no need of it
    from tunnelwrap.daemon.acme import Order, Proof

logger = logging.getLogger(__name__)

_RENEWED_AFTER: Final = (0.65, 0.68)
"""Of the lifetime, somewhere around two thirds: not all who began together come back together."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Times:
    """When a keeper does what.

    Args:
        poll_s: how often it looks.
        retry_s: after how long a failed order is tried again, the first time; twice as long each
            further time.
        most_s: but never longer.
    """

    poll_s: float = 60.0
    retry_s: float = 120.0
    most_s: float = 6 * 3600.0


_TIMES: Final = Times()


class Keeper(ABC):
    """Keeps what is shown on the TLS ports up to date.

    Args:
        host: the name that clients connect to.
        source: from where the certificate is, in a word.
        times: when it does what.
        client_ca: in PEM, who certifies clients that may show a certificate.
    """

    def __init__(self, host: str, source: str, times: Times, client_ca: str | None = None) -> None:
        self.shown = Shown(client_ca=client_ca)
        self._host, self._source, self._times = host, source, times
        self._certificate: x509.Certificate | None = None
        self._problem = ""
        self._told = asyncio.Event()

    def reload(self) -> None:
        """Look at once."""
        self._told.set()

    def status(self) -> dict[str, object]:
        """What there is, for people and machines."""
        own = self._certificate
        return {
            "source": self._source,
            "names": server_names(own) if own else [],
            "not_after": own.not_valid_after_utc.isoformat() if own else None,
            "problem": self._problem or None,
        }

    async def run(self) -> None:
        """Keep it until cancelled."""
        while True:
            is_told = self._told.is_set()
            self._told.clear()
            try:
                await self._look(is_told=is_told)
            except Exception:  # what is shown already can go on being shown
                logger.exception("the certificate cannot be kept up to date")
            with suppress(TimeoutError):
                async with asyncio.timeout(self._times.poll_s):
                    await self._told.wait()

    @abstractmethod
    async def _look(self, *, is_told: bool) -> None:
        """See whether there is something to do, and do it."""

    def _show(self, certificate_file: Path, key_file: Path) -> None:
        """Show another one from now on.

        Raises:
            ConfigError: it will not do.
        """
        context = server_context(certificate_file, key_file)
        own = load_certificates(certificate_file.read_bytes())[0]
        now, end = datetime.now(UTC), own.not_valid_after_utc
        if not own.not_valid_before_utc <= now <= end:
            raise ConfigError([f"{certificate_file}: not valid at this time, but until {end}"])
        self.shown.context, self._certificate = context, own
        if not names_server(own, self._host):
            names = ", ".join(server_names(own)) or "nobody"
            logger.warning(
                "%s names %s, and not %s: clients will refuse it over TLS. Either it needs that "
                "name too, or gateway.name must be one that it has",
                *(certificate_file, names, self._host),
            )

    def _fail(self, problem: str, what_now: str) -> None:
        """Tell once what goes wrong, and what becomes of it."""
        self._problem = problem
        own = self._certificate
        until = f"; the one in use is good until {own.not_valid_after_utc:%F %T %Z}" if own else ""
        logger.warning("no new certificate: %s%s%s", problem, until, what_now)


def keeper_of(own: StreamPorts, times: Times = _TIMES) -> Keeper | None:
    """The keeper for stream ports; none without TLS ports.

    Raises:
        ConfigError: its files will not do.
    """
    if not own.tls_ports:
        return None
    ca = own.gate.client_ca if own.gate else None
    client_ca = ca.pem if ca else None
    if isinstance(own, Gateway) and own.acme is not None:
        return AcmeKeeper(own, own.acme, times, client_ca)
    assert own.tls is not None  # the model checked it, and this
    assert own.tls.certificate.file is not None
    assert own.tls.key.file is not None
    files = own.tls.certificate.file, own.tls.key.file
    return FileKeeper(own.name, *files, times, client_ca)


# --- of one's own ----------------------------------------------------------------------------


class FileKeeper(Keeper):
    """Watches two files, which someone else renews.

    Args:
        host: the name that clients connect to.
        certificate_file: with its chain.
        key_file: its key.
        times: when it looks.
        client_ca: as above.

    Raises:
        ConfigError: they will not do now.
    """

    def __init__(
        self,
        host: str,
        certificate_file: Path,
        key_file: Path,
        times: Times = _TIMES,
        client_ca: str | None = None,
    ) -> None:
        super().__init__(host, "files", times, client_ca)
        self._files = certificate_file, key_file
        self._seen = self._state()
        self._show(*self._files)

    async def _look(self, *, is_told: bool) -> None:
        state = self._state()
        if state == self._seen and not is_told:
            return
        self._seen = state  # as it was before: what changes now is seen the next time
        try:
            self._show(*self._files)
        except (ConfigError, OSError) as error:
            self._fail("; ".join(str(error).splitlines()), "")
        else:
            self._problem = ""
            logger.info("the certificate in %s is in use now", self._files[0])

    def _state(self) -> list[tuple[int, int, int] | None]:
        """What changes with a file; links are followed."""
        return [_state_of(file) for file in self._files]


def _state_of(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


# --- by ACME ---------------------------------------------------------------------------------


class AcmeKeeper(Keeper):
    """Orders a certificate where there is none yet or the one that there is gets old.

    Owns: a directory in the gateway's state, one for each ACME server.

    Args:
        gateway: for whom.
        settings: from whom.
        times: when it looks, and tries again.
        client_ca: as above.
    """

    def __init__(
        self,
        gateway: Gateway,
        settings: Acme,
        times: Times = _TIMES,
        client_ca: str | None = None,
    ) -> None:
        super().__init__(gateway.name, "acme", times, client_ca)
        self._settings, self._names, self._listen = settings, gateway.certified, gateway.listen
        place = re.sub(r"[^A-Za-z0-9.-]+", "_", settings.directory.removeprefix("https://"))
        folder = gateway.state_directory / "acme" / place
        self._account_file, self._file = folder / "account.key", folder / "certificate.pem"
        self._share = SystemRandom().uniform(*_RENEWED_AFTER)
        self._next_try, self._retry_s = 0.0, times.retry_s
        if self._file.exists():
            self._show_stored()

    def status(self) -> dict[str, object]:
        """What there is, and when it will be renewed."""
        return {
            **super().status(),
            "renewal": self._due().isoformat() if self._certificate else None,
        }

    def _show_stored(self) -> None:
        try:
            self._show(self._file, self._file)
        except (ConfigError, OSError) as error:
            logger.warning("the stored certificate is of no use: %s", error)

    def _due(self) -> datetime:
        """When it is to be renewed: at once, if there is none or it lacks names."""
        own = self._certificate
        if own is None or not set(self._names) <= set(server_names(own)):
            return own.not_valid_before_utc if own else datetime.min.replace(tzinfo=UTC)
        begin, end = own.not_valid_before_utc, own.not_valid_after_utc
        return begin + (end - begin) * self._share

    async def _look(self, *, is_told: bool) -> None:
        now = asyncio.get_running_loop().time()
        is_time = now >= self._next_try or (is_told and bool(self._problem))
        if datetime.now(UTC) < self._due() or not is_time:
            return
        if self._certificate is None:
            names, place = ", ".join(self._names), self._settings.directory
            logger.info("no certificate yet, TLS has to wait: %s is asked for %s", place, names)
        self._next_try = (
            now + self._retry_s
        )  # whatever becomes of it: no server is asked all the time
        try:
            write_private(self._file, await self._obtained())
            self._show(self._file, self._file)
            self._check_names()
        except (CertificateError, ConfigError, StoreError, TransportError, OSError) as error:
            self._try_later(str(error))
        else:
            self._problem, self._retry_s = "", self._times.retry_s
            names, due = ", ".join(self._names), self._due()
            logger.info("new certificate for %s, to be renewed on %s", names, f"{due:%F %T %Z}")

    def _check_names(self) -> None:
        own = self._certificate
        if missing := set(self._names) - set(server_names(own) if own else ()):
            raise CertificateError(f"its certificate lacks {', '.join(sorted(missing))}")

    def _try_later(self, problem: str) -> None:
        wait_s = self._retry_s * SystemRandom().uniform(0.9, 1.1)
        self._next_try = asyncio.get_running_loop().time() + wait_s
        self._retry_s = min(2 * self._retry_s, self._times.most_s)
        what_now = f"; tried again in {wait_s:.0f} s, or by SIGHUP"
        self._fail(f"{self._settings.directory}: {problem}", what_now)

    async def _obtained(self) -> bytes:
        """The key and a new certificate with its chain."""
        order = await _in_thread(self._order)
        async with self._proving(order.proofs):
            return await _in_thread(order.finish)

    def _order(self) -> "Order":
        from tunnelwrap.daemon import acme  # noqa: PLC0415 (in the thread: it takes a second)

        if not self._account_file.exists():
            write_private(self._account_file, acme.new_account_key())
        return acme.Order(self._settings, self._names, self._account_file)

    @asynccontextmanager
    async def _proving(self, proofs: Sequence["Proof"]) -> AsyncIterator[None]:
        """Show what proves our names, to who asks for it."""
        if not proofs:
            yield
        elif self._settings.challenge == "http-01":
            texts = {proof.token: proof.text for proof in proofs}
            async with proving(self._listen, self._settings.http_port, texts):
                yield
        else:
            self.shown.proofs = {proof.name.lower(): _context_of(proof) for proof in proofs}
            try:
                yield
            finally:
                self.shown.proofs = {}


def _context_of(proof: "Proof") -> ssl.SSLContext:
    with TemporaryDirectory() as folder:  # OpenSSL takes no other than files
        file = Path(folder) / "proof.pem"
        write_private(file, proof.pem())
        return proof_context(file)


async def _in_thread(work: Callable[[], T]) -> T:
    """What a function gives that blocks for long.

    Unlike for asyncio's own threads nobody waits for its end when the gateway is to end.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast(T, result))

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 (it is raised where the result is awaited)
            failure = error
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="acme", daemon=True).start()
    return await done
