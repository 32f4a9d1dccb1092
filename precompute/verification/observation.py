"""What is told of shards that are looked at: faults, what could not be looked at, and how like their source they are."""

from dataclasses import dataclass

from precompute.verification.check_folder import Finding


@dataclass(frozen=True)
class Note:
    """What could not be looked at, and why."""

    text: str


@dataclass(frozen=True)
class Likeness:
    """PSNR of a decoded image and its source, in decibels. of: `KEY FIELD`."""

    of: str
    psnr: float


Observation = Finding | Note | Likeness
