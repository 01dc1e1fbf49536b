"""Which tests hold which requirements: ``python -m tests.kit.rfc``.

A test says what it holds by ``@pytest.mark.rfc("7296", "2.8.1")``. Each section with requirements
is held by a test, or is a gap with its reason here; a gap without reason makes the command fail.
The rows of the checklist of RFC 9329 are held by tests whose names begin with their IDs
(``test_c6_c10_...``), by those in ``HELD``, or stand in ``ROW_GAPS`` with a reason.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.kit.rfc_sections import SECTIONS, TITLES

TESTS = Path(__file__).parents[1]

_NO_TRANSPORT = "transport mode is the kernel's affair; the userspace data plane refuses it"
_KERNEL = "the kernel alone computes AH"
_MOBIKE = "no MOBIKE: a client that moves dials again"

GAPS: dict[str, dict[str, str]] = {
    "7296": {
        "2": "an overview; its ports are held by the carriers' tests",
        "2.12": "nothing is reused: each exchange has a private value of its own",
        "2.20": "CFG_REQUEST for the version is passed over: strangers need not know it",
        "2.24": "inner packets come from a TUN device; outer ECN is not seen in userspace",
        "3": "an overview of what its subsections say",
        "3.3.4": "replaced by RFC 8247",
    },
    "7383": {
        "2.5.3": "no message has payloads outside of the Encrypted payload too",
        "3": "no RFC 6311: message IDs are never synchronized",
    },
    "9329": {
        "7.1": _MOBIKE,
        "7.4": "there is no high availability",
        "8": "the kernel's TCP is an ordinary one",
        "9": "a word of caution about TCP in TCP; measured in tests/bench",
        "9.3": "the stream's DSCP is never set",
        "9.5": "outer ECN is the kernel's; inner packets keep theirs",
    },
    "7427": {},
    "8420": {"3": "a word about keys that are used with several methods"},
    "7619": {
        "2.5": "a lease is one address of each family, never a /64; peers are isolated from each "
        "other by the administrator's firewall",
        "3": "which selectors a connection without proof has is the administrator's choice",
        "3.4": "decrypted packets come out of a TUN device: the host's packet filters see them",
    },
    "8784": {"5.2.2": "advice for those who hand out keys"},
    "9242": {"4": "MAY; a resumed IKE SA has no key exchange, and so no IKE_INTERMEDIATE"},
    "6290": {
        "4.4": "no token is replaced: the secret stays, and addresses are not in it",
        "5.2": "tokens have no addresses in them",
        "5.3": "a token is a field of its IKE SA, and goes with it",
        "6": "no backup gateways",
        "8.2": "MAY; Child SPIs do not outlive a restart: INVALID_SPI leads to a liveness check, "
        "and its answer has the token",
        "9.3": "SPIs come from the operating system's generator",
        "A.1": "an alternative that the RFC sets aside",
    },
    "5685": {
        "4": "MAY; a redirect that comes from an anycast address is one like any other",
        "8": "no Mobile IPv6",
    },
    "8247": {"5": "advice for those who choose suites"},
    "8221": {
        "3": "there are no manual keys",
        "10": "advice for those who choose suites",
    },
    "4302": {
        **dict.fromkeys(("2", "2.3", "2.5"), _KERNEL),
        **dict.fromkeys(("3.3.2", "3.3.3.1", "3.3.3.2.2", "3.3.4"), _KERNEL),
        **dict.fromkeys(("3.4.1", "3.4.3", "4"), _KERNEL),
        "5": "refers to the sections before",
    },
    "4303": {
        "3.2": "algorithms are those of RFC 8221",
        "3.2.1": "algorithms are those of RFC 8221",
        "3.2.2": "algorithms are those of RFC 8221",
        "3.4.1": "the kernel has put fragments together before we see a datagram",
        "4": "events are counted by cause, not logged one by one",
        "6": "refers to the sections before",
    },
    "3948": {
        "3.1.2": _NO_TRANSPORT,
        "4": "keepalives leave every 20 s where we are behind a NAT; no test waits for that long",
        "5.1": "inner addresses are given by the gateway: two clients never have the same",
        "5.2": _NO_TRANSPORT,
    },
}
"""Sections that no test holds, and why."""

ROWS: dict[str, int] = {
    "A": 10,
    "F": 14,
    "U": 3,
    "C": 20,
    "R": 10,
    "N": 7,
    "Q": 7,
    "M": 10,
    "X": 5,
    "S": 5,
    "L": 8,
}
"""The checklist's groups and how many rows each has, numbered from 1."""

HELD: dict[str, str] = {
    "A1": "netns/test_daemons.py::test_a_reset_stream_is_opened_again_and_the_transfer_goes_on",
    "A3": "unit/transport/test_climb.py::test_the_first_rung_wins_and_no_other_begins",
    "A5": "netns/test_daemons.py::test_a_reset_stream_is_opened_again_and_the_transfer_goes_on",
    "A6": "netns/test_daemons.py::test_each_carrier_has_its_reason",
    "C5": "flows/test_streams.py::test_r2_so_does_a_request_of_the_tcp_responder",
    "C13": "unit/dataplane/test_userspace.py::test_what_is_not_ours_is_given_back_in_order",
    "C15": "flows/test_streams.py::test_c9_a_second_ike_sa_on_a_stream_is_refused",
    "C18": (
        "flows/test_streams.py"
        "::test_c16_the_newest_authentic_request_decides_where_the_responder_sends"
    ),
    "F3": "unit/dataplane/test_userspace.py::test_tun_mtu_makes_every_inner_packet_fit",
    "F6": "netns/test_ikev2_stream.py::test_every_frame_is_found",
    "F13": "properties/test_sniff.py::test_the_corpus",
    "F14": "unit/wire/test_framing.py::test_n5_keepalives_are_passed_on",
    "L1": "io/test_listener.py::test_a_stream_in_tls",
    "L3": "io/test_dial.py::test_tls",
    "L7": "unit/demux/test_listener.py::test_no_client_certificate_is_asked_for",
    "L8": "netns/test_demo.py::test_the_ladder_ends_where_it_should",
    "Q4": "unit/dataplane/test_userspace.py::test_mss_is_clamped_in_both_directions",
    "S3": "io/test_listener.py::test_the_newest_strangers_are_shed",
    "S5": "flows/test_streams.py::test_c17_a_forged_request_on_another_stream_moves_nothing",
    "U1": "unit/transport/test_climb.py::test_the_first_rung_wins_and_no_other_begins",
    "U3": "netns/test_demo.py::test_only_tcp_443_passes_and_it_is_iketcp_inside_tls",
}
"""Rows that a test holds which is not named by them."""

ROW_GAPS: dict[str, str] = {
    "A2": "ports are settings, which the tests of the configuration read",
    "A4": "there is no payload for it",
    "A7": "the administrator's matter; every address is tried on every carrier",
    "C2": "a stream is closed when the delete of its IKE SA is answered; no test looks for its FIN",
    "C12": "a wrong length ends the stream (F5); what only fails its ICV is counted, and a stream "
    "that carries nothing else ends by its liveness check",
    "C19": "MAY; a superseded stream goes with the reaper of C3",
    "L2": "no HTTP proxies",
    "L5": "TLS without encryption is not offered",
    "L6": "the defaults of the ssl module, from TLS 1.2 on",
    "M1": _MOBIKE,
    "M2": _MOBIKE,
    "M3": _MOBIKE,
    "M4": _MOBIKE,
    "M5": _MOBIKE,
    "M6": _MOBIKE,
    "M7": _MOBIKE,
    "M8": _MOBIKE,
    "M9": _MOBIKE,
    "M10": _MOBIKE,
    "N2": _NO_TRANSPORT,
    "N3": "MAY; TCP keepalives are not used",
    "Q1": "too large packets are answered by ICMP to the inner sender instead",
    "Q2": "one class of service",
    "Q3": "the stream's DSCP is never set",
    "Q5": "outer ECN is the kernel's; inner packets keep theirs",
    "Q6": "a word of caution; measured in tests/bench",
    "Q7": "a word of caution",
    "R5": "no cookie is asked for on a stream (R4)",
    "S1": "the kernel's TCP is an ordinary one",
    "S2": "a word about those who block it",
    "S4": "MAY; a stream that lost its frames is closed",
    "X3": "there is no high availability",
}

Place = tuple[str, str]


def main() -> None:
    """Print what is held by which tests; end with status 1 if there is a gap without reason."""
    held = marks()
    for number, sections in SECTIONS.items():
        count = sum((number, section) in held for section in sections)
        print(f"RFC {number} {TITLES[number]}: {count} of {len(sections)} sections held by tests")
        for section, title in sections.items():
            print(f"  {section:8} {title}")
            for line in _lines(number, section, held):
                print(f"           {line}")
        beside = sorted(
            place[1] for place in held if place[0] == number and place[1] not in sections
        )
        print(f"  and what is told without capitals or in examples: {', '.join(beside) or '-'}")
    rows = row_holders()
    print(f"Checklist of RFC 9329: {len(rows)} of {sum(ROWS.values())} rows held by tests")
    for row in all_rows():
        print(f"  {row:8} {', '.join(rows.get(row, [])) or '- ' + ROW_GAPS.get(row, 'NO REASON')}")
    for stale in stale_reasons(held, rows):
        print(f"{stale} is held by a test: its reason can go")
    found = problems()
    for problem in found:
        print(problem)
    sys.exit(1 if found else 0)


def problems() -> list[str]:
    """Gaps without reason, and what the tables name that there is not."""
    held, rows = marks(), row_holders()
    places = [(number, section) for number, known in SECTIONS.items() for section in known]
    names = set(test_names())
    return [
        *(
            f"RFC {number} §{section}: no test and no reason"
            for number, section in places
            if (number, section) not in held and not reason(number, section)
        ),
        *(
            f"checklist row {row}: no test and no reason"
            for row in all_rows()
            if row not in rows and row not in ROW_GAPS
        ),
        *(f"row {row}: no test {test}" for row, test in HELD.items() if test not in names),
        *(f"no row {row}" for row in (*HELD, *ROW_GAPS) if row not in all_rows()),
    ]


def stale_reasons(held: dict[Place, list[str]], rows: dict[str, list[str]]) -> list[str]:
    """Gaps that are none any more; no failure, so that a new test may come before its table."""
    places = [(number, section) for number, reasons in GAPS.items() for section in reasons]
    return [
        *(f"RFC {number} §{section}" for number, section in places if (number, section) in held),
        *(f"row {row}" for row in ROW_GAPS if row in rows),
    ]


def reason(number: str, section: str) -> str:
    """Why no test holds a section; empty: nobody has said."""
    return GAPS.get(number, {}).get(section, "")


def marks() -> dict[Place, list[str]]:
    """The tests that say that they hold a section."""
    held: dict[Place, list[str]] = {}
    for file, function in _functions():
        for decorator in function.decorator_list:
            place = _place(decorator)
            if place is not None:
                held.setdefault(place, []).append(f"{file}::{function.name}")
    return held


def row_holders() -> dict[str, list[str]]:
    """The tests that hold a row of the checklist, by their names or by ``HELD``."""
    held = {row: [test] for row, test in HELD.items()}
    for name in test_names():
        begin = re.match(r"test_((?:[a-z]\d+_)+)", name.partition("::")[2])
        for row in begin.group(1).upper().split("_")[:-1] if begin else ():
            if row in all_rows():
                held.setdefault(row, []).append(name)
    return held


def all_rows() -> list[str]:
    """The IDs of all rows."""
    return [f"{group}{number}" for group, last in ROWS.items() for number in range(1, last + 1)]


def test_names() -> list[str]:
    """All tests, as file and function."""
    return [f"{file}::{function.name}" for file, function in _functions()]


def _lines(number: str, section: str, held: dict[Place, list[str]]) -> list[str]:
    tests = held.get((number, section))
    if tests:
        return tests
    return [f"- {reason(number, section) or 'NO TEST AND NO REASON'}"]


def _functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for file in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if is_function and node.name.startswith("test_"):
                yield file.relative_to(TESTS).as_posix(), node


def _place(decorator: ast.expr) -> Place | None:
    """RFC and section of ``@pytest.mark.rfc(number, section)``."""
    if not isinstance(decorator, ast.Call) or not ast.unparse(decorator.func).endswith("mark.rfc"):
        return None
    number, section = (ast.literal_eval(argument) for argument in decorator.args)
    return str(number), str(section)


if __name__ == "__main__":
    main()
