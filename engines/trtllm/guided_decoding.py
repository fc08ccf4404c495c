"""Grammars in TensorRT-LLM: `GuidedDecodingParams` and the backend that follows them.

The backend is llguidance, also where a file made for trtllm-serve names another: it refuses what it cannot
enforce, and it is the library that `engines.grammar` tries every grammar out with before the runtime sees it.
It reads the vocabulary from the checkpoint's tokenizer, which the runtime otherwise does without.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from engines.base import EngineInfo
from engines.grammar.compiler import GrammarCompiler
from engines.grammar.notation import ALL_KINDS, lark_text, strict_schema
from engines.grammar.vocabulary import TOKENIZER_FILE, VocabularySource
from engines.request import Grammar, GrammarKind
from engines.trtllm.model_facts import ModelFacts

BACKEND = "llguidance"
_BACKEND_ARGUMENT = "guided_decoding_backend"
_PARAMS_CLASS = "GuidedDecodingParams"


def guided_decoding_arguments(directory: Path, facts: ModelFacts, llmapi: ModuleType) -> dict[str, Any]:
    """The arguments of `LLM(...)` that make grammars possible; none where they cannot be."""
    has_vocabulary = facts.eos_token_ids and (directory / TOKENIZER_FILE).is_file()
    if not has_vocabulary or not hasattr(llmapi, _PARAMS_CLASS):
        return {}
    return {_BACKEND_ARGUMENT: BACKEND, "skip_tokenizer_init": False}


def grammar_kinds(arguments: dict[str, Any]) -> frozenset[GrammarKind]:
    """What a model loaded with these arguments can be held to."""
    return ALL_KINDS if arguments.get(_BACKEND_ARGUMENT) == BACKEND else frozenset()


def guided_decoding_params(grammar: Grammar, llmapi: ModuleType) -> Any:
    """The runtime's object for a grammar; exactly one of its fields is set. Raises InvalidRequest."""
    fields = {
        GrammarKind.JSON_SCHEMA: "json",
        GrammarKind.JSON_OBJECT: "json",  # its own json_object takes arrays for objects with one backend
        GrammarKind.REGEX: "regex",
        GrammarKind.LARK: "grammar",
        GrammarKind.GBNF: "grammar",
    }
    if grammar.kind in (GrammarKind.JSON_SCHEMA, GrammarKind.JSON_OBJECT):
        text = strict_schema(grammar)
    elif grammar.kind is GrammarKind.REGEX:
        text = grammar.text
    else:
        text = lark_text(grammar)
    return getattr(llmapi, _PARAMS_CLASS)(**{fields[grammar.kind]: text})


def grammar_checker(directory: Path, info: EngineInfo) -> GrammarCompiler:
    """What says whether the runtime may be given a grammar."""
    source = VocabularySource(directory, info.vocab_size, min(info.eos_token_ids))
    return GrammarCompiler(source, only_checks=True)
