"""Which modules a quantisation config means: exact names, class names, "re:" expressions, wildcards.

An expression in a checkpoint is a stranger's program, and Python's engine backtracks without a limit; those
that could take exponential time are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import translate

from engines.errors import MalformedCheckpoint, UnsupportedCheckpoint

_PREFIX = "re:"
_MAX_LENGTH = 500
_MAX_UNBOUNDED = 5
_MAX_EXPRESSIONS = 2000


@dataclass(frozen=True, slots=True)
class ModulePatterns:
    """A list of patterns, taken apart: `names` mean exactly themselves, `expressions` match from the start.

    With `covers_children` a name also means everything below it.
    """

    names: frozenset[str]
    expressions: tuple[re.Pattern[str], ...] = ()
    covers_children: bool = False

    @classmethod
    def compressed_tensors(cls, patterns: list[str]) -> ModulePatterns:
        """Module names, class names and "re:..." expressions. Raises CheckpointError."""
        expressions = [item.removeprefix(_PREFIX) for item in patterns if item.startswith(_PREFIX)]
        _check_number(expressions)
        names = frozenset(item for item in patterns if not item.startswith(_PREFIX))
        return cls(names, tuple(_compile(item) for item in expressions))

    @classmethod
    def modelopt(cls, patterns: list[str]) -> ModulePatterns:
        """Module names and shell wildcards such as "model.layers.0.self_attn*". Raises CheckpointError."""
        wildcards = [item for item in patterns if set("*?[") & set(item)]
        _check_number(wildcards)
        names = frozenset(patterns) - frozenset(wildcards)
        return cls(names, tuple(_compile_wildcard(item) for item in wildcards), covers_children=True)

    def match(self, module: str, class_name: str = "Linear") -> bool:
        """Whether any pattern means the module called `module` of the class `class_name`."""
        if module in self.names or class_name in self.names:
            return True
        if self.covers_children and any(parent in self.names for parent in _parents(module)):
            return True
        return any(expression.match(module) is not None for expression in self.expressions)


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _check_number(expressions: list[str]) -> None:
    if len(expressions) > _MAX_EXPRESSIONS:
        raise UnsupportedCheckpoint(
            f"quantization_config: has {len(expressions)} expressions or wildcards; "
            f"the limit is {_MAX_EXPRESSIONS}"
        )


def _compile(expression: str) -> re.Pattern[str]:
    if len(expression) > _MAX_LENGTH or _could_explode(expression):
        raise UnsupportedCheckpoint(
            f"quantization_config: the expression {expression!r:.100} is too complex; expected at most "
            f"{_MAX_LENGTH} characters, {_MAX_UNBOUNDED} repeats and no repeated group"
        )
    try:
        return re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise MalformedCheckpoint(
            f"quantization_config: {expression!r:.100} is no regular expression: {str(error)!r}"
        ) from None


def _compile_wildcard(wildcard: str) -> re.Pattern[str]:
    if len(wildcard) > _MAX_LENGTH or wildcard.count("*") > _MAX_UNBOUNDED:
        raise UnsupportedCheckpoint(f"quantization_config: the wildcard {wildcard!r:.100} is too complex")
    try:
        return re.compile(translate(wildcard))
    except re.error as error:
        raise MalformedCheckpoint(
            f"quantization_config: {wildcard!r:.100} is no wildcard: {str(error)!r}"
        ) from None


def _could_explode(expression: str) -> bool:
    """Whether a group is repeated, or much is: the ingredients of catastrophic backtracking."""
    plain = re.sub(r"\\.", "_", expression)  # escaped characters mean themselves or a class
    plain = re.sub(r"\[\^?\]?[^\]]*\]", "_", plain)  # so does a set
    return re.search(r"\)[*+{]", plain) is not None or len(re.findall(r"[*+{]", plain)) > _MAX_UNBOUNDED
