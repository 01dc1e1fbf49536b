"""A device passes on single packets that a kernel takes for joined ones: of ESP in TCP (espintcp).

What came in TCP segments that were joined on their way (by GRO, or never cut, between virtual
machines) bears their marks still when it is decrypted. Its host takes it all the same; but where it
is to be forwarded, the kernel would cut it up again, cannot, and drops it at the next device, with
no other sign than that device's counter. So has every Linux known to us, 6.1.192 for one.

A program of ours (BPF) at the device takes the marks off. Packets that have really been joined at
the device are left alone: their payload is more than one segment of the size that they bear, and
they are TCP, as nothing else is joined there.
"""

import ctypes
import os
import platform
from dataclasses import dataclass
from struct import Struct
from typing import Final

from pyroute2 import IPRoute

from tunnelwrap.errors import HostNetError
from tunnelwrap.hostnet.netlink import Device, make

_BPF: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280}
"""The number of the system call, by the machine."""

_PROG_LOAD: Final = 5
_SCHED_CLS: Final = 3
_ATTRIBUTES: Final = Struct("=IIQQ32x")  # of union bpf_attr: type, count, program, license
_INSTRUCTION: Final = Struct("=BBhi")
_INGRESS: Final = "ffff:fff2"  # of clsact
_NAME: Final = "tunnelwrap"

# Fields of struct __sk_buff, helpers, and what the program gives back, of linux/bpf.h.
_LEN, _DATA, _DATA_END, _GSO_SIZE = 0, 76, 80, 176
_CHANGE_TAIL: Final = 38  # to the length that it has; marks do not outlive it
_GO_ON: Final = -1
_LEAST_HEADERS: Final = 40  # of TCP over IPv4
_TCP: Final = 6

# Operations of linux/bpf_common.h and linux/bpf.h.
_MOVE, _MOVE_IMMEDIATE, _ADD, _SHIFT_RIGHT = 0xBF, 0xB7, 0x07, 0x77
_LOAD_WORD, _LOAD_OCTET, _CALL, _EXIT = 0x61, 0x71, 0x85, 0x95
_JUMP, _IF_EQUAL, _IF_GREATER, _IF_NOT_GREATER = 0x05, 0x15, 0x2D, 0xBD


@dataclass(frozen=True, slots=True)
class _Line:
    """An instruction; it jumps to another one by its label."""

    code: int
    to: int = 0  # a register, as is
    of: int = 0
    offset: int = 0
    immediate: int = 0
    target: str = ""
    label: str = ""


# Registers: 6 the packet, 7 the size that it bears, 8 its length.
_LINES: Final = (
    _Line(_MOVE, 6, 1),
    _Line(_LOAD_WORD, 7, 6, _GSO_SIZE),
    _Line(_IF_EQUAL, 7, immediate=0, target="end"),
    _Line(_LOAD_WORD, 8, 6, _LEN),
    _Line(_MOVE, 2, 8),
    _Line(_ADD, 2, immediate=-_LEAST_HEADERS),
    _Line(_IF_NOT_GREATER, 2, 7, target="part"),
    _Line(_LOAD_WORD, 2, 6, _DATA),
    _Line(_LOAD_WORD, 3, 6, _DATA_END),
    _Line(_MOVE, 4, 2),
    _Line(_ADD, 4, immediate=10),
    _Line(_IF_GREATER, 4, 3, target="end"),
    _Line(_LOAD_OCTET, 4, 2, 0),
    _Line(_SHIFT_RIGHT, 4, immediate=4),
    _Line(_IF_EQUAL, 4, immediate=6, target="IPv6"),
    _Line(_LOAD_OCTET, 4, 2, 9),
    _Line(_JUMP, target="judge"),
    _Line(_LOAD_OCTET, 4, 2, 6, label="IPv6"),
    _Line(_IF_EQUAL, 4, immediate=_TCP, target="end", label="judge"),
    _Line(_MOVE, 1, 6, label="part"),
    _Line(_MOVE, 2, 8),
    _Line(_MOVE_IMMEDIATE, 3, immediate=0),
    _Line(_CALL, immediate=_CHANGE_TAIL),
    _Line(_MOVE_IMMEDIATE, 0, immediate=_GO_ON, label="end"),
    _Line(_EXIT),
)


def part_packets(device: Device) -> None:
    """Have the kernel do so until the device is gone.

    Raises:
        HostNetError: it will not.
    """
    program = _load()
    try:
        make(f"packets of {device} are parted", lambda route: _attach(route, device, program))
    finally:
        os.close(program)


def _attach(route: IPRoute, device: Device, program: int) -> None:
    route.tc("add", "clsact", device.index)
    words = {"fd": program, "name": _NAME, "parent": _INGRESS, "classid": 1}
    route.tc("add-filter", "bpf", device.index, ":1", direct_action=True, **words)


def _load() -> int:
    """The descriptor of the program.

    Raises:
        HostNetError: the kernel has no BPF, or we have no right to it.
    """
    number = _BPF.get(platform.machine())
    if number is None:
        raise HostNetError(f"packets are parted: not on {platform.machine()}")
    program = ctypes.create_string_buffer(_assembled())
    license_ = ctypes.create_string_buffer(b"")
    attributes = _ATTRIBUTES.pack(
        *(_SCHED_CLS, len(_LINES), ctypes.addressof(program), ctypes.addressof(license_))
    )
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.syscall(number, _PROG_LOAD, attributes, len(attributes))
    if descriptor < 0:
        why = os.strerror(ctypes.get_errno())
        raise HostNetError(
            f"a program of BPF that parts packets, for which CAP_BPF is needed: {why}"
        )
    return descriptor


def _assembled() -> bytes:
    at = {line.label: number for number, line in enumerate(_LINES)}
    return b"".join(
        _INSTRUCTION.pack(
            line.code,
            line.of << 4 | line.to,
            at[line.target] - number - 1 if line.target else line.offset,
            line.immediate,
        )
        for number, line in enumerate(_LINES)
    )
