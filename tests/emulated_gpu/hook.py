"""Lets the CUDA runtime, which CuPy's libraries have linked into them, jump to another one: in memory, when they are loaded."""

from __future__ import annotations

import ctypes
import os
import re
import struct
from pathlib import Path

_SYMBOLS, _DYNAMIC_SYMBOLS = 2, 11  # kinds of sections in an ELF file


def symbols(path: Path) -> dict[str, int]:
    """The functions that a library has, local ones too, with their places in it; 0 for those that it wants of others."""
    data = path.read_bytes()
    (first,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, first + i * size) for i in range(count)]
    found = {}
    for _, kind, _, _, start, length, link, *_ in sections:
        if kind not in (_SYMBOLS, _DYNAMIC_SYMBOLS):
            continue
        names = sections[link][4]
        for at in range(start, start + length, 24):
            name, info, _, _, place, _ = struct.unpack_from("<IBBHQQ", data, at)
            if info & 15 in (0, 2):  # a function, or not said
                text = data[names + name : data.index(b"\0", names + name)].decode()
                found[text.partition("@")[0]] = place
    return found


def _start(path: Path) -> int:
    """Where the loaded library begins in memory."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(path)):
            return int(line.split("-")[0], 16)
    raise RuntimeError(f"{path} is not loaded")


def redirect(path: Path, driver: ctypes.CDLL) -> None:
    """Let each function ``cuda...`` of the library begin with a jump to the driver's of that name, or to a clear end."""
    libc = ctypes.CDLL(None, use_errno=True)
    start, page = _start(path), os.sysconf("SC_PAGESIZE")
    for name, place in symbols(path).items():
        if not place or not re.fullmatch(r"cuda[A-Z]\w*", name):
            continue
        ours = ctypes.cast(getattr(driver, name, driver.emulator_missing), ctypes.c_void_p).value
        jump = b"\x48\xb8" + struct.pack("<Q", ours) + b"\xff\xe0"  # mov rax, ours; jmp rax
        first = (start + place) // page * page
        if libc.mprotect(ctypes.c_void_p(first), ctypes.c_size_t(start + place + len(jump) - first), 7):
            raise OSError(ctypes.get_errno(), "mprotect")
        ctypes.memmove(start + place, jump, len(jump))
