"""Damage to files, and what a loader may make of it: an answer or our own error, and soon."""

import random
import time

from hyperdp.errors import HyperdpError

HANG = 20.0  # seconds; the machine may be busy


def damage(rng: random.Random, data: bytes) -> bytes:
    """Flips, cuts, insertions, repetitions and swaps, one to four of them."""
    content = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(content):
            content[at] ^= rng.randint(1, 255)
        elif kind == 1:
            del content[at:]
        elif kind == 2:
            content[at:at] = rng.randbytes(rng.randint(1, 30))
        elif kind == 3:
            content[at:at] = content[at : at + rng.randint(1, 200)]
        elif kind == 4:
            del content[at : at + rng.randint(1, 60)]
        else:
            content[at : at + 8] = rng.choice(
                [b"\xff" * 8, b"\0" * 8, b"[" * 8, b'"' * 8, b"NaN     ", b"1e999999", b"-9999999"]
            )
        if not content:
            content = bytearray(b"\0")
    return bytes(content)


def outcome(load, *values) -> bool:
    """Whether it was refused; anything but our own error is a traceback and fails the test."""
    start = time.monotonic()
    try:
        load(*values)
        refused = False
    except HyperdpError as error:
        assert str(error)
        refused = True
    assert time.monotonic() - start < HANG
    return refused
