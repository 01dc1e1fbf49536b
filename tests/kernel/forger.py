"""``python -m tests.kernel.forger connect ...``: a client that sends whatever it likes.

It is tunnelwrap, but its own data plane does not keep to the traffic selectors agreed, and sends
the first packets of its stream once more when it has opened a new one.
"""

from collections.abc import Sequence
from dataclasses import replace

from tunnelwrap.cli.main import main
from tunnelwrap.config.model import ALL_ADDRESSES
from tunnelwrap.config.selectors import parse_selector
from tunnelwrap.dataplane.userspace import UserspacePlane
from tunnelwrap.ike.child_sa import ChildSa
from tunnelwrap.transport import Transport
from tunnelwrap.transport.stream import StreamTransport

ANYTHING = tuple(map(parse_selector, ALL_ADDRESSES))
first: list[tuple[bytes, Sequence[int]]] = []
honest_install, honest_move = UserspacePlane.install, UserspacePlane.move
honest_send_esp = StreamTransport.send_esp


def install(
    plane: UserspacePlane, child: ChildSa, transport: Transport, *, use_outbound: bool
) -> None:
    loose = replace(child, ts_local=ANYTHING, ts_peer=ANYTHING)
    honest_install(plane, loose, transport, use_outbound=use_outbound)


def send_esp(stream: StreamTransport, frames: memoryview, ends: Sequence[int]) -> int:
    if not first:
        first.append((bytes(frames), tuple(ends)))
    return honest_send_esp(stream, frames, ends)


def move(
    plane: UserspacePlane, spi_in: int, transport: Transport, *, is_bare: bool = False
) -> None:
    honest_move(plane, spi_in, transport, is_bare=is_bare)
    for frames, ends in first:
        transport.send_esp(memoryview(frames), ends)


if __name__ == "__main__":
    UserspacePlane.install = install
    UserspacePlane.move = move
    StreamTransport.send_esp = send_esp
    main()
