"""Request fields that chat and plain completions share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from service.protocol.structured import MAX_CHOICES, ResponseFormat, StructuredOutputs
from service.protocol.wire import WireModel

INT64_MAX = 2**63 - 1

StopString = Annotated[str, StringConstraints(min_length=1)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, le=INT64_MAX)]


class StreamOptions(WireModel):
    """Options that only matter with `stream: true`."""

    include_usage: bool | None = Field(default=None, description="Send a last chunk with the token counts.")
    include_obfuscation: bool | None = Field(default=None, description="Accepted; chunks are never padded.")


class GenerationFields(WireModel):
    """Sampling, stopping and delivery. Fields after `user` are extensions to OpenAI's API."""

    model: str = Field(description="One of the names listed by GET /v1/models.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1, le=128)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: Probability | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: int | None = Field(default=None, ge=-INT64_MAX - 1, le=INT64_MAX)
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    logit_bias: dict[str, Bias] | None = Field(
        default=None, max_length=1024, description="Token id (as a string) to a bias from -100 to 100."
    )
    user: str | None = None
    response_format: ResponseFormat | None = Field(default=None, description="On completions an extension.")

    top_k: int | None = Field(default=None, ge=-1, le=INT64_MAX, description="0 and -1 switch it off.")
    min_p: Probability | None = None
    repetition_penalty: float | None = Field(default=None, gt=0, le=10, allow_inf_nan=False)
    min_tokens: int | None = Field(default=None, ge=0, le=INT64_MAX)
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=128)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    timeout: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Seconds after which the answer is cut short."
    )
    priority: int | None = Field(
        default=None, ge=-INT64_MAX - 1, le=INT64_MAX, description="Lower is served first; the default is 0."
    )

    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = Field(default=None, description="vLLM's older name.")
    guided_regex: str | None = Field(default=None, description="vLLM's older name.")
    guided_choice: Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)] | None = Field(
        default=None, description="vLLM's older name."
    )
    guided_grammar: str | None = Field(default=None, description="vLLM's older name.")

    @property
    def num_choices(self) -> int:
        """Answers wanted for each prompt."""
        return self.n or 1

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings, however they were written."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)
