"""Bytes with the damage that files meet: flipped bits, holes, cuts, blocks that moved; the same for the same seed."""

import random

__all__ = ["mutated"]

_ODD = (
    b"\0",
    b"\xff",
    b"\0" * 512,
    b"\xff" * 8,
    b"9" * 12,
    b"\x80\0\0\0",
    b'"',
    b"\r\n",
    b"\xef\xbb\xbf",
    b"{[" * 300,
)


def mutated(data: bytes, seed: int) -> bytes:
    """The data with one to four faults."""
    rng, damaged = random.Random(seed), bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = (
            rng.randrange(len(damaged) + 1)
            if rng.random() < 0.6
            else rng.randrange(min(600, len(damaged)) + 1)
        )
        length = rng.choice([1, 4, 16, 512, 4096])
        kind = rng.randrange(8)
        if kind == 0 and at < len(damaged):
            damaged[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            damaged[at : at + length] = rng.randbytes(min(length, len(damaged) - at))
        elif kind == 2:
            del damaged[at : at + length]
        elif kind == 3:
            damaged[at:at] = damaged[at : at + length]
        elif kind == 4:
            damaged[at : at + length] = bytes(min(length, len(damaged) - at))
        elif kind == 5:
            del damaged[at:]
        elif kind == 6:
            odd = rng.choice(_ODD)
            damaged[at : at + len(odd)] = odd
        else:
            start, other = at // 512 * 512, rng.randrange(len(damaged) // 512 + 1) * 512
            damaged[start : start + 512], damaged[other : other + 512] = (
                damaged[other : other + 512],
                damaged[start : start + 512],
            )
    return bytes(damaged)
