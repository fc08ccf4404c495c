"""From a request's grammar to the one form llguidance reads. Nothing is compiled here."""

from __future__ import annotations

import json

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

from engines.errors import InvalidRequest
from engines.grammar.limits import MAX_GRAMMAR_BYTES
from engines.request import Grammar, GrammarKind

ALL_KINDS = frozenset(GrammarKind)

# JSON allows any amount of white space between tokens, and a model may go on with it for ever.
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,20}"
_STRICT = {"lenient": False, "coerce_one_of": False, "whitespace_pattern": _WHITESPACE}
_JSON_KINDS = (GrammarKind.JSON_SCHEMA, GrammarKind.JSON_OBJECT)


def library_grammar(grammar: Grammar) -> str:
    """The grammar as llguidance takes it. Raises InvalidRequest (param "grammar") for a malformed text."""
    num_bytes = len(grammar.text.encode("utf-8", "surrogatepass"))
    if num_bytes > MAX_GRAMMAR_BYTES:
        raise invalid_grammar(f"it has {num_bytes} bytes; expected at most {MAX_GRAMMAR_BYTES}")
    if not grammar.text.isprintable():
        _check_encodable(grammar.text)
    if grammar.kind in _JSON_KINDS:
        try:
            return LLMatcher.grammar_from_json_schema(strict_schema(grammar))
        except ValueError as error:
            raise invalid_grammar(f"the JSON Schema cannot be read ({error})") from None
    if not grammar.text.strip():
        raise invalid_grammar("it is empty")
    if grammar.kind is GrammarKind.REGEX:
        return LLMatcher.grammar_from_regex(grammar.text)
    return LLMatcher.grammar_from_lark(lark_text(grammar))


def strict_schema(grammar: Grammar) -> str:
    """The JSON Schema of a JSON_SCHEMA or JSON_OBJECT grammar, with llguidance's options in it.

    A keyword that cannot be enforced is an error when the schema is compiled. Raises InvalidRequest.
    """
    is_object = grammar.kind is GrammarKind.JSON_OBJECT
    schema = {"type": "object"} if is_object else _parse_schema(grammar.text)
    return json.dumps({**schema, "x-guidance": _STRICT})


def lark_text(grammar: Grammar) -> str:
    """A LARK or GBNF grammar in Lark's notation. Raises InvalidRequest."""
    if grammar.kind is GrammarKind.LARK:
        return grammar.text
    try:
        return str(any_to_lark(grammar.text))
    except GbnfToLarkError as error:
        raise invalid_grammar(str(error)) from None
    except RecursionError:
        raise invalid_grammar("it is too deeply nested") from None
    except (ValueError, KeyError, IndexError, AssertionError) as error:
        raise invalid_grammar(f"it cannot be read as GBNF ({error})") from None


def invalid_grammar(reason: str) -> InvalidRequest:
    """The error for a grammar that cannot be used, from a reason that a sentence can end with."""
    return InvalidRequest(f"the grammar cannot be used: {reason}", param="grammar")


def _parse_schema(text: str) -> dict[str, object]:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid_grammar(f"the JSON Schema is not JSON ({error})") from None
    if not isinstance(schema, dict):
        raise invalid_grammar(f"the JSON Schema is a {type(schema).__name__}; expected an object")
    if "x-guidance" in schema:
        raise invalid_grammar("the JSON Schema has 'x-guidance', which could switch its own keywords off")
    return schema


def _check_encodable(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise invalid_grammar("it holds a lone surrogate, which no text in UTF-8 can") from None
    if "\0" in text:
        raise invalid_grammar("it holds a NUL character")
