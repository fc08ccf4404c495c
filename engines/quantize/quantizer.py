"""`quantize`: an unquantised Hugging Face checkpoint in, an FP4 one out, one layer in memory at a time."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Sequence
from typing import Any

from engines.quantize.calibration_data import read_samples
from engines.quantize.options import QuantizeOptions
from engines.quantize.plan import Plan, make_plan
from engines.quantize.report import QuantizeReport
from engines.quantize.run import Progress, ProgressListener, Run
from engines.quantize.run_directory import RunDirectory, aside_path, destination_error
from engines.quantize.source import Source

__all__ = ["Progress", "ProgressListener", "quantize"]


def quantize(options: QuantizeOptions, on_progress: ProgressListener | None = None) -> QuantizeReport:
    """Quantise `options.source` to `options.destination`, continuing an interrupted run of the same kind.

    The destination appears at the end, whole, by one rename. Raises QuantizeError or CheckpointError; what a
    failed run had finished stays in a hidden folder beside the destination for the next one.
    """
    options.check()
    source = Source(options.source)
    plan = make_plan(source.checkpoint, options)
    samples = _read_samples(options, source)
    _require_space(options, plan)
    directory = RunDirectory(options.destination, _identity(options, source, samples))
    try:
        return Run(options, source, plan, samples, directory, on_progress or _ignore).execute()
    except OSError as error:
        directory.discard_if_empty()
        raise destination_error(options.destination, error) from error
    except BaseException:
        directory.discard_if_empty()
        raise
    finally:
        directory.close()


def _ignore(_: Progress) -> None:
    """The listener of a caller that wants none."""


def _read_samples(options: QuantizeOptions, source: Source) -> list[list[int]]:
    if options.calibration is None:
        return []
    config = source.checkpoint.config
    samples = read_samples(options.calibration, options.source, config.vocab_size)
    return [sample[: config.max_position_embeddings] for sample in samples]


def _identity(options: QuantizeOptions, source: Source, samples: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What has to be equal for a run to continue another; a change of it would change the output."""
    calibration = hashlib.sha256(json.dumps(samples).encode()).hexdigest() if samples else None
    return {
        "source": source.digests,
        "calibration": calibration,
        "format": options.format,
        "layout": options.layout,
        "method": options.method,
        "ignore": list(options.ignore),
        "shard_bytes": options.shard_bytes,
    }


def _require_space(options: QuantizeOptions, plan: Plan) -> None:
    """Fail before the work when the disk cannot hold the result; files reserve their space again later."""
    parent = options.destination.absolute().parent
    if options.destination.exists() or not parent.exists():
        return
    free = shutil.disk_usage(parent).free
    if free < plan.output_bytes and not aside_path(options.destination).exists():
        reason = f"No space left on device: {plan.output_bytes:,} bytes are needed, {free:,} are free"
        raise destination_error(options.destination, OSError(errno.ENOSPC, reason))
