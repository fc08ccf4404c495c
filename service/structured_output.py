"""What a request says about the form of its answer, made into the engine's `Grammar`.

A form that cannot be held to is an error: an answer is never silently free.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from engines.base import EngineInfo
from engines.errors import InvalidRequest
from engines.request import Grammar, GrammarKind
from service.errors import BadRequest, UnsupportedField
from service.protocol.generation import GenerationFields
from service.protocol.wire import WireModel

# What tells llama.cpp's notation from Lark's, which writes `rule: ...`.
_GBNF_ARROW = "::="


def grammar_of(fields: GenerationFields, info: EngineInfo) -> Grammar | None:
    """The form asked for, None for free text. Raises BadRequest, UnsupportedField."""
    asked = _grammars(fields)
    if not asked:
        return None
    if len(asked) > 1:
        raise BadRequest(
            f"Both '{asked[0][0]}' and '{asked[1][0]}' ask for a form of the answer; expected one of them.",
            param=asked[1][0],
        )
    field, grammar = asked[0]
    if grammar.kind not in info.grammar_kinds:
        raise UnsupportedField(
            f"The engine {info.engine!r} that serves this model cannot hold an answer to a form"
            f"{f' of the kind {grammar.kind.value!r}' if info.grammar_kinds else ''}. Leave '{field}' out.",
            param=field,
        )
    if fields.ignore_eos:
        raise BadRequest(
            f"'ignore_eos' cannot be had together with '{field}', which says where the answer ends.",
            param="ignore_eos",
        )
    return grammar


@contextmanager
def blaming_the_field(fields: GenerationFields) -> Iterator[None]:
    """The engine says "grammar" of what the client calls by another name."""
    try:
        yield
    except InvalidRequest as error:
        if error.param == "grammar":
            error.param = next((field for field, _ in _grammars(fields)), None)
        raise


def _grammars(fields: GenerationFields) -> list[tuple[str, Grammar]]:
    """Every form asked for, with the name of the field that does."""
    found: list[tuple[str, Grammar]] = []
    response_format = _response_format(fields)
    if response_format is not None:
        found.append(("response_format", response_format))
    outputs = fields.structured_outputs
    if outputs is not None:
        _refuse_unknown(outputs, "structured_outputs")
        found += _vllm_grammars(
            "structured_outputs.", outputs.json_schema, outputs.regex, outputs.choice, outputs.grammar
        )
        if outputs.json_object:
            found.append(("structured_outputs.json_object", Grammar(GrammarKind.JSON_OBJECT)))
        if not found:
            raise BadRequest(
                "'structured_outputs' asks for nothing; expected one of json, json_object, regex, choice, "
                "grammar.",
                param="structured_outputs",
            )
    found += _vllm_grammars(
        "guided_", fields.guided_json, fields.guided_regex, fields.guided_choice, fields.guided_grammar
    )
    return found


def _response_format(fields: GenerationFields) -> Grammar | None:
    asked = fields.response_format
    if asked is None or asked.type == "text":
        return None
    _refuse_unknown(asked, "response_format")
    if asked.type == "json_object":
        return Grammar(GrammarKind.JSON_OBJECT)
    if asked.type != "json_schema":
        raise UnsupportedField(
            f"The type {asked.type[:100]!r} of 'response_format' is not supported by this server; expected "
            "text, json_object or json_schema.",
            param="response_format",
        )
    if asked.json_schema is None or asked.json_schema.json_schema is None:
        missing = "json_schema" if asked.json_schema is None else "json_schema.schema"
        raise BadRequest(
            f"Missing required parameter: 'response_format.{missing}'.", param=f"response_format.{missing}"
        )
    return _schema_grammar(asked.json_schema.json_schema, "response_format")


def _vllm_grammars(
    prefix: str,
    schema: dict[str, Any] | str | None,
    regex: str | None,
    choices: list[str] | None,
    grammar: str | None,
) -> list[tuple[str, Grammar]]:
    found: list[tuple[str, Grammar]] = []
    if schema is not None:
        found.append((f"{prefix}json", _schema_grammar(schema, f"{prefix}json")))
    if regex is not None:
        found.append((f"{prefix}regex", Grammar(GrammarKind.REGEX, regex)))
    if choices is not None:
        found.append((f"{prefix}choice", Grammar(GrammarKind.REGEX, choice_regex(choices))))
    if grammar is not None:
        kind = GrammarKind.GBNF if _GBNF_ARROW in grammar else GrammarKind.LARK
        found.append((f"{prefix}grammar", Grammar(kind, grammar)))
    return found


def _schema_grammar(schema: dict[str, Any] | str, field: str) -> Grammar:
    if isinstance(schema, str):
        return Grammar(GrammarKind.JSON_SCHEMA, schema)
    try:
        return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema, allow_nan=False))
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The JSON Schema cannot be used: {error}.", param=field) from None


def _refuse_unknown(part: WireModel, field: str) -> None:
    """Inside these objects an unknown name may be a constraint in somebody else's dialect."""
    if part.ignored_fields:
        name = f"{field}.{part.ignored_fields[0][:100]}"
        raise UnsupportedField(f"'{name}' is not supported by this server. Leave it out.", param=name)


def choice_regex(choices: list[str]) -> str:
    """A regular expression that matches exactly the given texts."""
    return "(?:" + "|".join("".join(map(_escaped, choice)) for choice in choices) + ")"


def _escaped(character: str) -> str:
    if character.isalnum() or not character.isascii():
        return character
    return f"\\x{ord(character):02x}"
