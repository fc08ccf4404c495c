"""How the model's makers want it sampled: generation_config.json, for what a request leaves open."""

from __future__ import annotations

from pathlib import Path

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

_FILE_NAME = "generation_config.json"
_MAX_FILE_BYTES = 2**20


class GenerationConfigError(Exception):
    """The checkpoint's generation_config.json cannot be used."""


class SamplingDefaults(BaseModel):
    """What holds where a request says nothing; without a file, OpenAI's defaults.

    The file's other fields are left alone, `do_sample` and `max_new_tokens` too: the API has defaults of its
    own for whether to sample and for how long an answer may get.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    temperature: float = Field(default=1.0, ge=0, le=100, allow_inf_nan=False)
    top_k: int = Field(default=0, ge=-1)
    top_p: float = Field(default=1.0, ge=0, le=1, allow_inf_nan=False)
    min_p: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float = Field(default=1.0, gt=0, le=10, allow_inf_nan=False)

    @property
    def differing(self) -> dict[str, float]:
        """The fields that are not OpenAI's defaults."""
        plain = OPENAI_DEFAULTS.model_dump()
        return {name: value for name, value in self.model_dump().items() if value != plain[name]}


OPENAI_DEFAULTS = SamplingDefaults()


def read_sampling_defaults(directory: Path) -> SamplingDefaults:
    """From a checkpoint's folder; OPENAI_DEFAULTS if it has no such file. Raises GenerationConfigError."""
    path = directory / _FILE_NAME
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise ValueError(f"larger than {_MAX_FILE_BYTES} bytes")
        values = orjson.loads(content)
        if not isinstance(values, dict):
            raise ValueError(f"holds {type(values).__name__}; expected a JSON object")
        given = {name: value for name, value in values.items() if value is not None}
        return SamplingDefaults.model_validate(given)
    except FileNotFoundError:
        return OPENAI_DEFAULTS
    except ValidationError as error:
        first = error.errors()[0]
        raise _unusable(path, f"{first['loc'][0]}: {first['msg']}") from None
    except (OSError, ValueError) as error:
        raise _unusable(path, str(error)) from None


def _unusable(path: Path, reason: str) -> GenerationConfigError:
    return GenerationConfigError(f"{path}: {reason}; mend it, or leave it out with --generation-config none")
