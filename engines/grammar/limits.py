"""What a grammar may cost. The worst hostile grammars tried stay well under a second a token."""

from __future__ import annotations

from llguidance import LLParserLimits

MAX_GRAMMAR_BYTES = 128 * 1024
MAX_COMPILE_CPU_SECONDS = 2
# Every running request waits for a mask that is late. The first ones are the dearest of most grammars.
MAX_MASK_CPU_SECONDS = 0.5
NUM_MASKS_TRIED = 5
# The parser recurses: what overflows a small stack is refused before a large one gets to see it.
CHECK_STACK_BYTES = 2 * 1024 * 1024
COMPILE_STACK_BYTES = 64 * 1024 * 1024


def parser_limits() -> LLParserLimits:
    """Less than the library allows: lexer states cost memory, fuel costs time."""
    return LLParserLimits(initial_lexer_fuel=300_000, step_lexer_fuel=100_000, max_lexer_states=20_000)
