"""One random generator for the package, on the host: the same seed gives the same numbers on every device.

Initial weights and orders of data are drawn from it. Dropout draws one 64-bit key a call; its mask is a function of that key.
"""

from __future__ import annotations

import numpy as np

_drawn_from: list[np.random.Generator] = []  # one, when it is first asked for: importing numpy.random takes a while


def manual_seed(seed: int) -> None:
    """Start the package's random numbers anew, from a non-negative int."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"manual_seed expected a non-negative int, got {seed!r}")
    generator().bit_generator.state = np.random.PCG64(int(seed)).state


def get_rng_state() -> dict:
    """Where the generator stands, as a dict that JSON can hold."""
    return dict(generator().bit_generator.state)


def set_rng_state(state: dict) -> None:
    """Put the generator where ``get_rng_state`` found it."""
    before = get_rng_state()
    try:
        generator().bit_generator.state = state
        if get_rng_state() != state:  # NumPy cuts fractions off
            raise ValueError("not a state")
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        generator().bit_generator.state = before
        raise ValueError(f"set_rng_state expected a dict from get_rng_state(), got {state!r}") from error


def generator() -> np.random.Generator:
    """The generator itself, for whoever draws on the host."""
    if not _drawn_from:
        _drawn_from.append(np.random.Generator(np.random.PCG64()))
    return _drawn_from[0]


_stream = 0


def set_stream(number: int) -> None:
    """Let ``draw_key`` give keys of another stream, 0 at first: so ranks that draw alike, and go on alike, drop differently."""
    global _stream
    _stream = number


def draw_key() -> int:
    """A fresh 64-bit key."""
    key = int(generator().integers(0, 2**64, dtype=np.uint64))
    return key ^ (_stream * 0x9E3779B97F4A7C15 % 2**64)  # an odd number times the stream: another one for each
