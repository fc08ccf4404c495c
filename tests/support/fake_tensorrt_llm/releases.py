"""The differences between releases, as the notes have them (sections 2.2 to 2.6)."""

from __future__ import annotations

from dataclasses import dataclass

from packaging.version import Version


@dataclass(frozen=True)
class Release:
    """One release's traits."""

    name: str

    @property
    def version(self) -> Version:
        return Version(self.name)

    @property
    def is_since_1_2(self) -> bool:
        return self.version.release[:2] >= (1, 2)

    @property
    def is_new(self) -> bool:
        """After the removal of the TensorRT backend."""
        return self.version > Version("1.3.0rc20")

    @property
    def has_penalties(self) -> bool:
        return self.version.release[:2] == (1, 0) or self.version >= Version("1.3.0rc24")

    @property
    def has_min_p(self) -> bool:
        return self.version.release[:2] != (1, 1)

    @property
    def checks_ranges(self) -> bool:
        return self.is_since_1_2
