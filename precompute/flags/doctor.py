"""The flags of precompute/doctor.py."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """It has no flags."""
