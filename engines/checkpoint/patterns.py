"""Which modules a quantisation config means: exact names, class names, "re:" expressions, wildcards.

An expression in a checkpoint is a stranger's program, and Python's engine backtracks without a limit; so those that
could take exponential time are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from engines.errors import MalformedCheckpoint, UnsupportedCheckpoint

_PREFIX = "re:"
_MAX_LENGTH = 500
_MAX_UNBOUNDED = 5


@dataclass(frozen=True, slots=True)
class ModulePatterns:
    """A list of patterns. `wildcards` True: modelopt's rules (fnmatch; a name also covers what is below it)."""

    patterns: tuple[str, ...]
    wildcards: bool = False

    def match(self, module: str, class_name: str = "Linear") -> bool:
        """Whether any pattern means the module `module` of the class `class_name`."""
        return any(self._matches(pattern, module, class_name) for pattern in self.patterns)

    def _matches(self, pattern: str, module: str, class_name: str) -> bool:
        if self.wildcards:
            return module == pattern or module.startswith(pattern + ".") or fnmatchcase(module, pattern)
        if pattern.startswith(_PREFIX):
            return compile_expression(pattern).match(module) is not None
        return pattern in (module, class_name)


@lru_cache(maxsize=4096)
def compile_expression(pattern: str) -> re.Pattern[str]:
    """Compile "re:...". Raises MalformedCheckpoint when it is none, UnsupportedCheckpoint when it could explode."""
    expression = pattern.removeprefix(_PREFIX)
    if len(expression) > _MAX_LENGTH or _could_explode(expression):
        raise UnsupportedCheckpoint(
            f"quantization_config: the expression {pattern!r:.100} is too complex; expected at most {_MAX_LENGTH} "
            f"characters, {_MAX_UNBOUNDED} repeats and no repeated group"
        )
    try:
        return re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise MalformedCheckpoint(
            f"quantization_config: {pattern!r:.100} is no regular expression: {error}"
        ) from None


def _could_explode(expression: str) -> bool:
    """True for a repeated group and for many unbounded repeats: the ingredients of catastrophic backtracking."""
    plain = re.sub(r"\\.", "_", expression)  # escaped characters mean themselves or a class
    plain = re.sub(r"\[\^?\]?[^\]]*\]", "_", plain)  # so does a set
    return re.search(r"\)[*+{]", plain) is not None or len(re.findall(r"[*+{]", plain)) > _MAX_UNBOUNDED
