"""Limits a comparison has to keep: the accuracy gate of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from engines.errors import InvalidRequest
from engines.evaluate.comparison import ComparisonResult


@dataclass(frozen=True, slots=True)
class Thresholds:
    """None means no limit. `max_kl` limits the mean KL divergence in nats per token.

    Raises InvalidRequest for a limit that no result could be meant by.
    """

    max_kl: float | None = None
    min_agreement: float | None = None
    max_perplexity_ratio: float | None = None

    def __post_init__(self) -> None:
        if self.max_kl is not None and not self.max_kl >= 0:
            raise InvalidRequest(f"max_kl is {self.max_kl}; expected 0 or more", param="max_kl")
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise InvalidRequest(
                f"min_agreement is {self.min_agreement}; expected a share, 0 to 1", param="min_agreement"
            )
        if self.max_perplexity_ratio is not None and not self.max_perplexity_ratio > 0:
            raise InvalidRequest(
                f"max_perplexity_ratio is {self.max_perplexity_ratio}; expected more than 0",
                param="max_perplexity_ratio",
            )

    def failures(self, result: ComparisonResult) -> tuple[str, ...]:
        """What `result` breaks, one sentence each; empty when it passes. A limit met exactly passes."""
        broken = []
        if self.max_kl is not None and result.mean_kl > self.max_kl:
            broken.append(f"mean KL divergence is {result.mean_kl:.6g}, above --max-kl {self.max_kl:g}")
        if self.min_agreement is not None and result.agreement < self.min_agreement:
            broken.append(
                f"top-1 agreement is {result.agreement:.6g}, below --min-agreement {self.min_agreement:g}"
            )
        ratio = result.perplexity_ratio
        if self.max_perplexity_ratio is not None and ratio > self.max_perplexity_ratio:
            broken.append(
                f"perplexity ratio is {ratio:.6g}, above --max-perplexity-ratio {self.max_perplexity_ratio:g}"
            )
        return tuple(broken)
