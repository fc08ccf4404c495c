"""Continuous batching: which sequence computes which tokens in the next step, and where its KV entries lie.

Pure Python; knows token ids and block numbers, but no arrays, threads or models.
"""

from engines.scheduler.batch import Batch, ScheduledSequence
from engines.scheduler.config import SchedulerConfig, SchedulerStats
from engines.scheduler.scheduler import Drafter, Pace, Scheduler
from engines.scheduler.sequence import Sequence, SequenceStatus

__all__ = [
    "Batch",
    "Drafter",
    "Pace",
    "ScheduledSequence",
    "Scheduler",
    "SchedulerConfig",
    "SchedulerStats",
    "Sequence",
    "SequenceStatus",
]
