"""Tokenizers of every kind, loaded once for all tests of the text layer."""

from __future__ import annotations

import pytest

from service.tokenizer import Tokenizer
from tests.support.tokenizer_kinds import KINDS, write_kind


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory, golden) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    loaded = {kind: Tokenizer.load(write_kind(folder, kind)) for kind in KINDS}
    loaded["golden"] = Tokenizer.load(golden / "mistral-mxfp4-ct")
    return loaded


@pytest.fixture(params=[*KINDS, "golden"])
def tokenizer(request: pytest.FixtureRequest, tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    return tokenizers[request.param]
