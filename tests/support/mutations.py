"""Bytes with the damage that files meet: flipped bits, holes, cuts, blocks that moved, values of JSON that are odd; by a seed."""

import copy
import json
import random
from typing import Any

__all__ = ["damage", "mutated", "mutated_json"]

ODD: list[Any] = [None, -1, 0, 1, 2**31, 2**62, 2**63 - 1, 10**400, 1e308, -0.5, True, "", "x", "../x", "\x1b[31m", "\ud800", [], [[]], {}, {"a": []}, ["float16"], [65536, 65536, 64]]  # fmt: skip

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


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = list(
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [path, *(place for name, inner in items for place in places(inner, (*path, name)))]


def mutated_json(content: Any, rng: random.Random) -> bytes:
    """Values replaced, removed, doubled or swapped; now and then a few bytes instead."""
    content = json.loads(json.dumps(content))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        path = rng.choice(places(content)[1:])
        parent = content
        for step in path[:-1]:
            parent = parent[step]
        kind = rng.random()
        if kind < 0.7:
            odd = rng.choice(ODD)
            parent[path[-1]] = copy.copy(odd) if isinstance(odd, list | dict) else odd
        elif kind < 0.8:
            del parent[path[-1]]
        elif isinstance(parent, list):
            parent.append(copy.deepcopy(parent[path[-1]]))
        else:
            parent[rng.choice(["", "x", "\x1b[2J", "folder"])] = parent[path[-1]]
    data = bytearray(json.dumps(content).encode())
    if rng.random() < 0.2:
        damage(data, rng)
    return bytes(data)


def damage(data: bytearray, rng: random.Random) -> None:
    if rng.random() < 0.2:
        del data[rng.randrange(len(data)) :]
    for _ in range(rng.choice([1, 1, 2, 8]) if data else 0):
        data[rng.randrange(len(data))] = rng.randrange(256)
