"""What can go wrong while a checkpoint is quantised, besides the source itself (`CheckpointError`).

QuantizeError
├── InvalidOptions       a combination of options that cannot work
├── CalibrationError     the calibration file, or what it gives, cannot be used
├── WeightError          a tensor of the source cannot be quantised
├── SourceChanged        the source is not what it was when the run began
└── DestinationError     the destination exists, is not writable, is full, or is being written by another run
"""

from __future__ import annotations

from engines.errors import EngineError


class QuantizeError(EngineError):
    """Base of the errors of this package; nothing is at the destination when one is raised."""


class InvalidOptions(QuantizeError):
    """The options contradict each other or lack something."""


class CalibrationError(QuantizeError):
    """The calibration file cannot be read or used, or its samples give activations that are not finite."""


class WeightError(QuantizeError):
    """A weight holds NaN or infinity, or its width is no multiple of the group size."""


class SourceChanged(QuantizeError):
    """The source files differ from those the run began with."""


class DestinationError(QuantizeError):
    """The destination cannot be written."""
