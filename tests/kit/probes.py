"""Questions by which a prober could tell one web server from another, and what it notes of answers.

Each is asked on a connection of its own. Noted is every octet, where records of TLS end, how the
connection ends and whether it is still there afterwards; masked is only what differs between two
runs of one server.
"""

import asyncio
import re
import ssl
import struct
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

QUIET_S = 0.7  # after so long without a word a server waits for more
NAME = "localhost"
_MASKS = (
    (re.compile(rb"(Date: )[^\r]*"), rb"\1..."),
    (re.compile(rb"(Location: https?://(?:\[[^/\r]*\]|[^:/\r]*)):[0-9]+"), rb"\1"),
    (re.compile(rb"[0-9]{20}"), b"BOUNDARY............"),
)
HOST = b"Host: localhost\r\n"


@dataclass(frozen=True)
class Probe:
    """A question.

    Args:
        name: in a few words.
        says: what is said, in pieces between which there is a pause.
        in_tls: inside of TLS, with this
        context: by default what browsers have.
        quiet_s: how long to wait for more.
        ends: whether we end our side when we have said all.
    """

    name: str
    says: Sequence[bytes] = ()
    in_tls: bool = True
    context: ssl.SSLContext | None = None
    sni: str | None = NAME
    quiet_s: float = QUIET_S
    ends: bool = False


@dataclass
class Noted:
    """What came of it."""

    octets: bytes = b""
    records: list[int] = field(default_factory=list)
    hello: str = ""
    end: str = "open"
    afterwards: str = ""

    def __str__(self) -> str:
        text = self.octets.decode("latin-1")
        if len(text) > 1500:
            text = f"{text[:700]} ... {text[-200:]} ({len(self.octets)} octets)"
        return f"{text!r} {self.hello} records={self.records} {self.end} {self.afterwards}"


def masked(octets: bytes) -> bytes:
    """Without what differs from one time to the next."""
    for pattern, new in _MASKS:
        octets = pattern.sub(new, octets)
    return octets


async def ask(port: int, probe: Probe) -> Noted:
    """Ask a server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    asking = _Asking(reader, writer, probe)
    try:
        await asking.run()
    finally:
        writer.transport.abort()
    asking.noted.octets = masked(asking.noted.octets)
    return asking.noted


class _Asking:
    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, probe: Probe
    ) -> None:
        self._reader, self._writer, self._probe = reader, writer, probe
        self.noted = Noted()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self._raw = b""

    async def run(self) -> None:
        probe = self._probe
        if probe.in_tls:
            context = probe.context or browser()
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=probe.sni)
            if not await self._shake_hands():
                return
        try:
            for number, piece in enumerate(probe.says):
                if number:
                    await asyncio.sleep(0.05)
                await self._say(piece)
            if probe.ends:
                self._say_goodbye()
            await self._listen()
        except OSError:  # also of an end to who has left
            self.noted.end = "reset"

    async def _shake_hands(self) -> bool:
        assert self._tls is not None
        flight = b""
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                octets = await self._read()
                flight += octets
                if not octets:
                    self.noted.end = f"no handshake: {self.noted.end} {_alert(flight)}"
                    return False
                self._incoming.write(octets)
            except ssl.SSLError as error:
                self.noted.end = f"no handshake: {error.reason} {_alert(flight)}"
                return False
        self.noted.hello = _shape(flight, self._tls)
        self._flush()
        return True

    async def _say(self, piece: bytes) -> None:
        if self._tls is not None:
            self._tls.write(piece)
            self._flush()
        else:
            self._writer.write(piece)
        with suppress(ConnectionError):
            await self._writer.drain()

    def _say_goodbye(self) -> None:
        if self._tls is not None:
            with suppress(ssl.SSLError):
                self._tls.unwrap()
            self._flush()
        self._writer.write_eof()

    def _flush(self) -> None:
        if octets := self._outgoing.read():
            self._writer.write(octets)

    async def _read(self) -> bytes:
        try:
            async with asyncio.timeout(self._probe.quiet_s):
                octets = await self._reader.read(1 << 16)
        except TimeoutError:
            return b""
        if not octets:
            self.noted.end = "FIN"
        return octets

    async def _listen(self) -> None:
        is_told = False
        while octets := await self._read():
            self._count_records(octets)
            if self._tls is None:
                self.noted.octets += octets
                continue
            self._incoming.write(octets)
            with suppress(ssl.SSLWantReadError):
                while piece := self._tls.read(1 << 16):
                    self.noted.octets += piece
                is_told = True
        if is_told:
            self.noted.end = f"close_notify, {self.noted.end}"
        if self.noted.end.endswith("FIN") and not self._probe.ends:
            await self._knock()

    async def _knock(self) -> None:
        """See whether somebody is still there after the end."""
        await asyncio.sleep(0.05)
        try:
            for _ in range(2):
                self._writer.write(b"\x17\x03\x03\x00\x01x")
                await self._writer.drain()
                await asyncio.sleep(0.1)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await self._reader.read(1)
            if self._reader.exception() is not None or self._writer.transport.is_closing():
                raise ConnectionResetError
        except ConnectionError:
            self.noted.afterwards = "then reset"
        else:
            self.noted.afterwards = "then lingers"

    def _count_records(self, octets: bytes) -> None:
        """The lengths of records that carry what is said, but not of tickets."""
        self._raw += octets
        while len(self._raw) >= 5 and self._tls is not None:
            (length,) = struct.unpack("!H", self._raw[3:5])
            if len(self._raw) < 5 + length:
                return
            self.noted.records.append(length)
            self._raw = self._raw[5 + length :]


def _alert(flight: bytes) -> str:
    return flight.hex() if flight[:1] == b"\x15" else ""


def _shape(flight: bytes, tls: ssl.SSLObject) -> str:
    """What a ServerHello tells: version, cipher, extensions in their order."""
    body = flight[9:]
    session = body[34]
    at = 35 + session
    cipher = body[at : at + 2].hex()
    kinds, place = [], at + 5
    end = place + int.from_bytes(body[at + 3 : at + 5], "big")
    while place < end:
        kind, length = struct.unpack("!HH", body[place : place + 4])
        kinds.append(kind)
        place += 4 + length
    more = f"{tls.version()} {tls.selected_alpn_protocol()}"
    return f"hello={body[:2].hex()},{session},{cipher},{kinds},{more}"


def browser(
    *,
    alpn: Sequence[str] = ("h2", "http/1.1"),
    version: ssl.TLSVersion | None = None,
    ciphers: str | None = None,
) -> ssl.SSLContext:
    """A client that trusts everybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if ciphers is not None:
        context.set_ciphers(ciphers)
    if version is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
            context.maximum_version = version
    return context


# --- the questions ---------------------------------------------------------------------------


def _lines(*lines: bytes, end: bytes = b"\r\n") -> bytes:
    return end.join([*lines, b"", b""])


def _get(target: bytes = b"/", *fields: bytes, method: bytes = b"GET") -> bytes:
    return _lines(method + b" " + target + b" HTTP/1.1", b"Host: localhost", *fields)


def _requests() -> dict[str, Sequence[bytes]]:
    """Whole requests, good and bad, each followed by a good one if the connection is kept."""
    good = {
        "page": _get(),
        "page by name": _get(b"/index.html"),
        "large file": _get(b"/large.bin"),
        "head": _get(method=b"HEAD"),
        "close": _get(b"/", b"Connection: close"),
        "close in capitals": _get(b"/", b"connection: CLOSE"),
        "connection of two": _get(b"/", b"Connection: te, close"),
        "version 1.0": _lines(b"GET / HTTP/1.0"),
        "version 1.0 kept": _lines(b"GET / HTTP/1.0", b"Connection: keep-alive"),
        "version 0.9": b"GET /\r\n",
        "version 0.9 LF": b"GET /\n",
        "version 0.9 other": b"POST /\r\n",
        "version 0.9 missing": b"GET /nothing\r\n",
        "missing": _get(b"/nothing"),
        "missing by chrome": _get(b"/nothing", b"User-Agent: Mozilla/5.0 Chrome/156.0"),
        "missing folder": _get(b"/nothing/"),
        "folder": _get(b"/sub"),
        "folder with query": _get(b"/sub?a=b"),
        "folder with slash": _get(b"/sub/"),
        "folder without index": _get(b"/empty/"),
        "folder under a file": _get(b"/index.html/a"),
        "file as folder": _get(b"/index.html/"),
        "post page": _get(b"/index.html", b"Content-Length: 0", method=b"POST"),
        "post root": _get(b"/", b"Content-Length: 0", method=b"POST"),
        "post missing": _get(b"/nothing", b"Content-Length: 0", method=b"POST"),
        "post folder": _get(b"/sub", b"Content-Length: 0", method=b"POST"),
        "post with body": _get(b"/", b"Content-Length: 5", method=b"POST") + b"12345",
        "get with body": _get(b"/", b"Content-Length: 5") + b"12345",
        "get chunked": _get(b"/", b"Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n",
        "get chunked trailer": _get(b"/", b"Transfer-Encoding: chunked")
        + b"1;x=y\r\na\r\n0\r\nA: b\r\n\r\n",
        "bad chunk": _get(b"/", b"Transfer-Encoding: chunked") + b"zz\r\nabc\r\n0\r\n\r\n",
        "chunk too long": _get(b"/", b"Transfer-Encoding: chunked") + b"1\r\nabc\r\n0\r\n\r\n",
        "put": _get(method=b"PUT"),
        "delete missing": _get(b"/nothing", method=b"DELETE"),
        "options": _get(method=b"OPTIONS"),
        "options star": _get(b"*", method=b"OPTIONS"),
        "trace": _get(method=b"TRACE"),
        "connect": _get(b"localhost:443", method=b"CONNECT"),
        "connect path": _get(method=b"CONNECT"),
        "unknown method": _get(method=b"BREW"),
        "method in small": _get(method=b"get"),
        "method with digit": _get(method=b"GE7"),
        "long method": _get(method=b"A" * 100),
        "absolute": _lines(b"GET http://localhost/ HTTP/1.1", b"Host: localhost"),
        "absolute bare": _lines(b"GET http://localhost HTTP/1.1", b"Host: localhost"),
        "absolute query": _lines(b"GET http://localhost?a HTTP/1.1", b"Host: localhost"),
        "absolute port": _lines(b"GET http://localhost:1/sub HTTP/1.1", b"Host: other"),
        "absolute broken": _lines(b"GET http:/localhost HTTP/1.1", b"Host: localhost"),
        "absolute host broken": _lines(b"GET http://local_host/ HTTP/1.1", b"Host: localhost"),
        "no host": _lines(b"GET / HTTP/1.1"),
        "no host 1.0": _lines(b"GET /sub HTTP/1.0"),
        "two hosts": _get(b"/", b"Host: localhost"),
        "empty host": _lines(b"GET / HTTP/1.1", b"Host:"),
        "bad host": _lines(b"GET / HTTP/1.1", b"Host: a b"),
        "bad host slash": _lines(b"GET / HTTP/1.1", b"Host: a/b"),
        "bad host dots": _lines(b"GET / HTTP/1.1", b"Host: a..b"),
        "host dot": _lines(b"GET / HTTP/1.1", b"Host: ."),
        "host with port": _lines(b"GET /sub HTTP/1.1", b"Host: LOCALHOST:99"),
        "host in brackets": _lines(b"GET /sub HTTP/1.1", b"Host: [::1]:99"),
        "other host": _lines(b"GET /sub HTTP/1.1", b"Host: other.example."),
        "version 1.2": _lines(b"GET / HTTP/1.2", b"Host: localhost"),
        "version 1.99": _lines(b"GET / HTTP/1.99", b"Host: localhost"),
        "version 1.100": _lines(b"GET / HTTP/1.100", b"Host: localhost"),
        "version 1.01": _lines(b"GET / HTTP/1.01", b"Host: localhost"),
        "version 2.0": _lines(b"GET / HTTP/2.0", b"Host: localhost"),
        "version 9": b"GET / HTTP/9\r\n\r\n",
        "version 11.1": _lines(b"GET / HTTP/11.1", b"Host: localhost"),
        "version 0.1": _lines(b"GET / HTTP/0.1", b"Host: localhost"),
        "version in small": _lines(b"GET / http/1.1", b"Host: localhost"),
        "version and blank": _lines(b"GET / HTTP/1.1 ", b"Host: localhost"),
        "no version number": b"GET / HTTP/\r\n\r\n",
        "preface of h2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "two blanks": _lines(b"GET  / HTTP/1.1", b"Host: localhost"),
        "two blanks behind": _lines(b"GET /  HTTP/1.1", b"Host: localhost"),
        "tab": _lines(b"GET\t/ HTTP/1.1", b"Host: localhost"),
        "blank in front": b" " + _get(),
        "blank in target": _lines(b"GET /a b HTTP/1.1", b"Host: localhost"),
        "no target": b"GET HTTP/1.1\r\n\r\n",
        "only method": b"GET\r\n\r\n",
        "empty lines in front": b"\r\n\n\r\n" + _get(),
        "bare LF": _lines(b"GET / HTTP/1.1", b"Host: localhost", end=b"\n"),
        "CR CR LF": _lines(b"GET / HTTP/1.1", b"Host: localhost\r"),
        "CR in line": _lines(b"GET / HTTP/1.1\rX", b"Host: localhost"),
        "CR in field": _get(b"/", b"A: b\rc"),
        "zero in field": _get(b"/", b"A: b\0c"),
        "zero in target": _get(b"/a\0"),
        "high octet in target": _get(b"/\xff"),
        "control in target": _get(b"/\x01"),
        "folded field": _get(b"/", b"A: b", b" c"),
        "field with blank": _get(b"/", b"A : b"),
        "field without colon": _get(b"/", b"nonsense"),
        "field without name": _get(b"/", b": b"),
        "field with underscore": _get(b"/", b"a_b: c"),
        "field with high octet": _get(b"/", b"\xffa: c"),
        "field with control": _get(b"/", b"a\x01: c"),
        "field with tab": _get(b"/", b"A:\tb"),
        "escaped": _get(b"/%69ndex.html"),
        "escaped slash": _get(b"/sub%2findex.html"),
        "escaped query": _get(b"/index.html%3fa"),
        "escaped zero": _get(b"/%00"),
        "escape broken": _get(b"/%zz"),
        "escape short": _get(b"/%4"),
        "dots": _get(b"/sub/../index.html"),
        "dots above": _get(b"/../../etc/passwd"),
        "dots above escaped": _get(b"/%2e%2e/etc/passwd"),
        "dots at the end": _get(b"/sub/.."),
        "dot at the end": _get(b"/sub/."),
        "slashes": _get(b"//sub///index.html"),
        "fragment": _get(b"/index.html#a"),
        "query": _get(b"/index.html?/../.."),
        "long name": _get(b"/" + b"a" * 300),
        "text": _get(b"/a.txt"),
        "script": _get(b"/a.JS"),
        "no type": _get(b"/plain"),
        "expect": _get(b"/", b"Expect: 100-continue"),
        "expect with body": _get(b"/", b"Expect: 100-continue", b"Content-Length: 3") + b"abc",
        "expect and missing": _get(b"/nothing", b"Expect: 100-continue"),
        "expect other": _get(b"/", b"Expect: 200-ok"),
        "expect 1.0": _lines(b"GET / HTTP/1.0", b"Expect: 100-continue"),
        "length broken": _get(b"/", b"Content-Length: x"),
        "length negative": _get(b"/", b"Content-Length: -1"),
        "length empty": _get(b"/", b"Content-Length:"),
        "length huge": _get(b"/", b"Content-Length: 9999999"),
        "length beyond": _get(b"/", b"Content-Length: 99999999999999999999"),
        "length twice": _get(b"/", b"Content-Length: 0", b"Content-Length: 0"),
        "length and coding": _get(b"/", b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        "coding unknown": _get(b"/", b"Transfer-Encoding: gzip"),
        "coding of two": _get(b"/", b"Transfer-Encoding: gzip, chunked"),
        "coding identity": _get(b"/", b"Transfer-Encoding: identity"),
        "coding twice": _get(b"/", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked")
        + b"0\r\n\r\n",
        "coding in 1.0": _lines(b"GET / HTTP/1.0", b"Transfer-Encoding: chunked"),
        "upgrade": _get(b"/", b"Upgrade: websocket", b"Connection: Upgrade"),
        "encoding": _get(b"/", b"Accept-Encoding: gzip, br"),
        "target of 1000": _get(b"/nothing?" + b"a" * 1000),
        "target of 8000": _get(b"/nothing?" + b"a" * 8000),
        "target of 8166": _get(b"/nothing?" + b"a" * 8166),
        "target of 8170": _get(b"/nothing?" + b"a" * 8170),
        "target of 9000": _get(b"/nothing?" + b"a" * 9000),
        "field of 8000": _get(b"/", b"A: " + b"a" * 8000),
        "field of 8187": _get(b"/", b"A: " + b"a" * 8187),
        "field of 8188": _get(b"/", b"A: " + b"a" * 8188),
        "field of 9000": _get(b"/", b"A: " + b"a" * 9000),
        "fields of 24 K": _get(b"/", *[b"A: " + b"a" * 997] * 24),
        "fields of 40 K": _get(b"/", *[b"A: " + b"a" * 997] * 40),
        "many fields": _get(b"/", *[b"A: b"] * 500),
        "line of octets": b"A" * 9000,
        "line of octets and more": b"A" * 20000,
        "modified since": _get(b"/", b"If-Modified-Since: Thu, 01 Jan 2026 00:00:00 GMT"),
        "modified since later": _get(b"/", b"If-Modified-Since: Fri, 02 Jan 2026 00:00:00 GMT"),
        "modified since nonsense": _get(b"/", b"If-Modified-Since: yesterday"),
        "unmodified since": _get(b"/", b"If-Unmodified-Since: Thu, 01 Jan 2025 00:00:00 GMT"),
        "unmodified since nonsense": _get(b"/", b"If-Unmodified-Since: yesterday"),
        "match any": _get(b"/", b"If-Match: *"),
        "match other": _get(b"/", b'If-Match: "a", "b"'),
        "none match any": _get(b"/", b"If-None-Match: *"),
        "none match other": _get(b"/", b'If-None-Match: "a"'),
        "none match weak": _get(b"/a.txt", b'If-None-Match: "x", W/"6955b900-14"'),
        "none match strong": _get(b"/a.txt", b'If-None-Match: "6955b900-14"'),
    }
    ranges = {
        "0-4": 0, "5-": 0, "-5": 0, "0-0,-1": 0, "0-1,3-4": 0, "90-": 0, "5-4": 0, "a": 0, "": 0,
        "0-99999": 0, "-99999": 0, "-0": 0, "0-4,": 0, "0-4;": 0, " 0 - 4 ": 0, "0-20,0-20": 0,
        "-": 0, "0--1": 0, "99999999999999999999-": 0,
    }  # fmt: skip
    for text in ranges:
        good[f"range {text}"] = _get(b"/a.txt", b"Range: bytes=" + text.encode())
    good["range other"] = _get(b"/a.txt", b"Range: lines=0-4")
    good["range of head"] = _get(b"/a.txt", b"Range: bytes=0-4", method=b"HEAD")
    good["range of missing"] = _get(b"/nothing", b"Range: bytes=0-4")
    good["range if older"] = _get(b"/a.txt", b"Range: bytes=0-4", b'If-Range: "old"')
    good["range if date"] = _get(
        b"/a.txt", b"Range: bytes=0-4", b"If-Range: Thu, 01 Jan 2026 00:00:00 GMT"
    )
    return {name: (octets,) for name, octets in good.items()}


def _sequences() -> dict[str, Sequence[bytes]]:
    """Requests in pieces, together, and after others."""
    return {
        "two at once": (_get() + _get(b"/a.txt"),),
        "good and bad": (_get() + b"nonsense\r\n\r\n",),
        "bad and good": (b"nonsense\r\n\r\n" + _get(),),
        "one after the other": (_get(), _get(b"/nothing"), _get(b"/a.txt", b"Connection: close")),
        "in two pieces": (b"GET / HT", b"TP/1.1\r\nHost: localhost\r\n\r\n"),
        "bad in pieces": (b"GET / H", b"X"),
        "body later": (_get(b"/", b"Content-Length: 5", method=b"POST"), b"12345" + _get()),
        "expect, body later": (
            _get(b"/", b"Content-Length: 5", b"Expect: 100-continue", method=b"POST"),
            b"12345" + _get(),
        ),
        "body too long later": (_get(b"/", b"Content-Length: 9999999", method=b"POST"), b"12345"),
        "chunk later": (
            _get(b"/", b"Transfer-Encoding: chunked"),
            b"3\r\nabc\r\n0\r\n\r\n" + _get(),
        ),
        "bad chunk later": (_get(b"/", b"Transfer-Encoding: chunked"), b"zz\r\n"),
        "request and octets": (_get(b"/", b"Connection: close") + b"more",),
        "zero": (b"\0",),
        "high octet": (b"\xff",),
        "IKETCP": (b"IKETCP\0\4\0\0",),
        "ssh": (b"SSH-2.0-OpenSSH_9.2\r\n",),
        "tls in tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),),
        "socks": (b"\x05\x01\x00",),
        "capitals": (b"OHBAEPHEIWAHCHAJ",),
        "nothing yet": (),
        "half a line": (b"GET / HTTP/1.1",),
        "half a head": (b"GET / HTTP/1.1\r\nHost: localhost\r\n",),
    }


def _clients() -> dict[str, tuple[ssl.SSLContext, str | None]]:
    """Clients that speak TLS in other ways."""
    old = ssl.TLSVersion
    return {
        "TLS 1.2": (browser(version=old.TLSv1_2), NAME),
        "TLS 1.1": (browser(version=old.TLSv1_1, ciphers="ALL:@SECLEVEL=0"), NAME),
        "TLS 1.0": (browser(version=old.TLSv1, ciphers="ALL:@SECLEVEL=0"), NAME),
        "no shared cipher": (browser(version=old.TLSv1_2, ciphers="AES128-SHA"), NAME),
        "one cipher": (browser(version=old.TLSv1_2, ciphers="ECDHE+CHACHA20"), NAME),
        "no name": (browser(), None),
        "another name": (browser(), "other.example"),
        "no ALPN": (browser(alpn=()), NAME),
        "only h2": (browser(alpn=["h2"]), NAME),
        "only h2 in 1.2": (browser(alpn=["h2"], version=old.TLSv1_2), NAME),
        "unknown ALPN": (browser(alpn=["acme-tls/1"]), NAME),
        "old HTTP": (browser(alpn=["http/1.0"]), NAME),
    }


def _raw() -> dict[str, Sequence[bytes]]:
    """What is no TLS, or not for long."""
    return {
        "plain page": (_get(),),
        "plain 1.0": (_lines(b"GET / HTTP/1.0"),),
        "plain head": (_get(method=b"HEAD"),),
        "plain post": (_get(b"/", b"Content-Length: 5", method=b"POST") + b"12345",),
        "plain trace": (_get(method=b"TRACE"),),
        "plain chrome": (_get(b"/", b"User-Agent: Chrome/1"),),
        "plain expect": (_get(b"/", b"Expect: 100-continue"),),
        "plain no host": (_lines(b"GET / HTTP/1.1"),),
        "plain nonsense": (b"nonsense\r\n\r\n",),
        "plain half": (b"GET / HT", b"TP/1.1\r\nHost: a\r\n\r\n"),
        "plain 0.9": (b"GET /\r\n",),
        "plain zero": (b"\0",),
        "plain IKETCP": (b"IKETCP\0\4",),
        "plain ssh": (b"SSH-2.0-a\r\n",),
        "plain proxy": (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n" + _get(),),
        "record of junk": (b"\x16\x03\x01\x00\x04junk",),
        "record of another version": (b"\x16\x05\x01\x00\x04junk",),
        "record of no version": (b"\x16\x00\x00\x00\x04junk",),
        "record too long": (b"\x16\x03\x01\xff\xff" + bytes(100),),
        "empty record": (b"\x16\x03\x01\x00\x00" * 3,),
        "alert first": (b"\x15\x03\x01\x00\x02\x02\x28",),
        "data first": (b"\x17\x03\x03\x00\x02ab",),
        "other message first": (b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",),
        "short hello": (b"\x16\x03\x01\x00\x06\x01\x00\x00\x02\x03\x03",),
        "hello of SSL 2": (b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes(37),),
        "hello of SSL 2 with 3": (b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10" + bytes(37),),
        "high octets": (b"\xff" * 64,),
        "half a record": (b"\x16\x03\x01\x02\x00\x01\x00",),
        "only a begin": (b"\x16",),
    }


def probes() -> list[Probe]:
    """All of them."""
    tls12 = browser(version=ssl.TLSVersion.TLSv1_2)
    found = [Probe(name, says) for name, says in {**_requests(), **_sequences()}.items()]
    found += [
        Probe(f"{name}, in TLS 1.2", _requests()[name], context=tls12)
        for name in ("page", "missing", "large file", "close", "no host", "method in small")
    ]
    found += [
        Probe(f"{name}, then an end", says, ends=True)
        for name, says in {
            **_sequences(),
            "page": (_get(),),
            "large": (_get(b"/large.bin"),),
        }.items()
    ]
    found += [
        Probe(name, (_get(),), context=context, sni=sni)
        for name, (context, sni) in _clients().items()
    ]
    found += [Probe(name, says, in_tls=False) for name, says in _raw().items()]
    found += [
        Probe(f"{name}, then an end", says, in_tls=False, ends=True)
        for name, says in _raw().items()
    ]
    return found


def slow_probes(quiet_s: float) -> list[Probe]:
    """Those that wait for a server's time to be up, which must be less than that."""
    return [
        Probe("time in silence", (), quiet_s=quiet_s),
        Probe("time in a line", (b"GET / HT",), quiet_s=quiet_s),
        Probe("time in a head", (b"GET / HTTP/1.1\r\nHost: a\r\n",), quiet_s=quiet_s),
        Probe("time between requests", (_get(),), quiet_s=quiet_s),
        Probe("time in the second", (_get() + b"GET /",), quiet_s=quiet_s),
        Probe("time in a body", (_get(b"/", b"Content-Length: 9"), b"1"), quiet_s=quiet_s),
        Probe("time without TLS", (), in_tls=False, quiet_s=quiet_s),
        Probe("time in a hello", (b"\x16\x03\x01\x02\x00",), in_tls=False, quiet_s=quiet_s),
        Probe("time in a plain line", (b"GET / HT",), in_tls=False, quiet_s=quiet_s),
        Probe("time of a guess", (b"GET /Ahdai",), quiet_s=quiet_s),
    ]
