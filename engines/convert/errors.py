"""What can go wrong while a checkpoint is converted, besides the source itself (`CheckpointError`).

ConversionError
├── NotLossless          weights would change, and nobody has allowed that
├── NoInputScales        the target stores static activation scales and there is nothing to take them from
└── DestinationError     the destination exists, is not writable or is full

Nothing is at the destination when one is raised.
"""

from __future__ import annotations

from engines.errors import EngineError


class ConversionError(EngineError):
    """Base of the errors of this package."""


class NotLossless(ConversionError):
    """A weight has no bit-equal form in the target layout."""


class NoInputScales(ConversionError):
    """The target layout needs input scales that neither the source nor a calibration gives."""


class DestinationError(ConversionError):
    """The destination cannot be written."""
