"""OpenAI's request bodies, with what vLLM's, llama-server's and others' clients add: the one shape all routes come
to."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from hetero.gateway.requests.fields import (
    MOST_CHOICES,
    Bias,
    Budget,
    Factor,
    Penalty,
    Prediction,
    Prompts,
    Reasoning,
    ResponseFormat,
    Seed,
    Share,
    Stops,
    StreamOptions,
    StructuredOutputs,
    Text,
    ThinkingSwitch,
    TokenId,
    Tokens,
)
from hetero.gateway.requests.messages import ChatMessage
from hetero.gateway.requests.reading import Body, meaning_none
from hetero.gateway.requests.tools import Tool, ToolChoice, functions_of
from hetero.workers.models.generation import SamplingDefaults
from hetero.workers.wire.messages import MAX_LOGPROBS, MAX_TOKENS, Sampling

_SEED = (1 << 63) - 1
# What would change an answer and cannot be done here: field -> the values that ask for nothing.
_UNDONE: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "modalities": (["text"], []),
    "audio": ({},),
    "functions": ([],),
    "web_search_options": (),
    "bad_words": ([],),
    "allowed_token_ids": ([],),
    "function_call": ("auto", "none"),
    "include_stop_str_in_output": (False,),
    "truncate_prompt_tokens": (-1,),
    "mirostat": (0,),
    "mirostat_mode": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "typical_p": (0, 1),
    "typ_p": (0, 1),
    "tfs_z": (1,),
    "top_a": (0,),
    "dynatemp_range": (0,),
    "length_penalty": (1,),
    "use_beam_search": (False,),
}
# They change nothing here.
_NO_MATTER = {"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "store",
              "service_tier", "verbosity", "cache_prompt", "id_slot", "n_keep", "request_id", "priority",
              "mirostat_tau", "mirostat_eta", "return_tokens", "timings_per_token", "spaces_between_special_tokens",
              "detokenize"}  # fmt: skip

_CONSTRAINTS = {"json_schema": "json", "guided_json": "json", "guided_regex": "regex", "guided_choice": "choice",
                "grammar": "grammar", "guided_grammar": "grammar"}  # fmt: skip


class OpenRequest(Body):
    """What both completion routes share."""

    sampled: ClassVar[tuple[str, ...]] = ("temperature", "top_p", "top_k", "min_p")

    model: str = ""
    max_tokens: Annotated[Tokens, meaning_none(-1, 0)] = None
    temperature: Annotated[Annotated[float, Field(ge=0.0, le=100.0)] | None, meaning_none(-1)] = None
    top_p: Share = None
    top_k: Annotated[int, Field(ge=-1, le=(1 << 31) - 1)] | None = None
    min_p: Share = None
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Factor = None
    repeat_penalty: Factor = None
    repeat_last_n: Annotated[
        int, Field(ge=-1, le=MAX_TOKENS, description="of repeat_penalty; -1: all there is, 0: no penalty")
    ] = 64
    logit_bias: Bias = {}
    seed: Seed = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    stop: Stops = []
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True, max_length=64)] = []
    min_tokens: Budget = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    guided_json: dict[str, Any] | Text | None = None
    json_schema: dict[str, Any] | None = None
    guided_regex: Text | None = None
    grammar: Annotated[Text | None, meaning_none("")] = None
    guided_grammar: Annotated[Text | None, meaning_none("")] = None
    guided_choice: Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=4096)] | None = None
    structured_outputs: StructuredOutputs | None = None
    speculation: Annotated[bool, Field(description="hetero's own: false decodes plainly, for comparison")] = True

    @model_validator(mode="before")
    @classmethod
    def _undone(cls, body: Any) -> Any:
        """Refuse what cannot be done, drop what asks for nothing."""
        if not isinstance(body, dict):
            return body
        for key, neutral in _UNDONE.items():
            value = body.get(key)
            same = any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral)
            if value is not None and not same:
                raise ValueError(f"{key}: this server cannot do that: leave it out")
        return {key: value for key, value in body.items() if key not in _UNDONE and key not in _NO_MATTER}

    @property
    def wanted_logprobs(self) -> int:
        """How many likeliest tokens to report beside each; -1: no logprobs."""
        return -1

    @property
    def constraint(self) -> tuple[str, Any, str] | None:
        """What the output must obey, a "json" schema, a "regex", one of a "choice" of texts or a "grammar", and the
        field that says so."""
        if self.response_format is not None and (schema := self.response_format.schema_of()) is not None:
            return "json", schema, "response_format"
        for field, kind in _CONSTRAINTS.items():
            if (value := getattr(self, field)) is not None:
                return kind, value, field
        for kind in ("json", "regex", "choice", "grammar"):
            name = "json_" if kind == "json" else kind
            if (value := getattr(self.structured_outputs, name, None)) is not None:
                return kind, value, "structured_outputs"
        return None

    def samplings(self, defaults: SamplingDefaults, choices: int) -> list[Sampling]:
        """The sampling of each choice; without a seed they get one from the OS, kept for replays."""
        seed = secrets.randbits(63) if self.seed is None else self.seed & _SEED
        bias = [(int(token), value) for token, value in self.logit_bias.items()]
        temperature, top_p, top_k, min_p = (
            getattr(defaults, name) if (own := getattr(self, name)) is None else own for name in self.sampled
        )
        factor, last = self.repetition_penalty, 0
        if factor is None and self.repeat_penalty is not None:
            factor, last = self.repeat_penalty, max(self.repeat_last_n, 0)
            factor = factor if self.repeat_last_n else 1.0
        if factor is None:
            factor, last = defaults.repetition, defaults.repetition_last
        return [
            Sampling(
                temperature,
                max(top_k, 0),
                max(top_p, 1e-9),  # of 0 the likeliest token is left
                min_p,
                seed,
                choice,
                self.presence_penalty,
                self.frequency_penalty,
                bias,
                self.wanted_logprobs,
                factor,
                last,
                self.min_tokens or 0,
            )
            for choice in range(choices)
        ]


class CompletionRequest(OpenRequest):
    """POST /v1/completions."""

    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=-1, le=MAX_TOKENS)] | None = None
    echo: bool = False
    logprobs: Annotated[Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None, meaning_none(False, -1)] = None
    best_of: Annotated[Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None, meaning_none(0, -1)] = None
    prediction: Prediction | None = None

    @property
    def wanted_logprobs(self) -> int:
        return -1 if self.logprobs is None else self.logprobs

    @model_validator(mode="after")
    def _together(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of < self.n:
            raise ValueError(f"best_of: it must be at least n, which is {self.n}")
        if self.best_of is not None and self.best_of > self.n and self.stream:
            raise ValueError("best_of: the best are known at the end only: leave out stream, or best_of")
        if len(self.prompt) * max(self.n, self.best_of or 1) > MOST_CHOICES:
            raise ValueError(f"n times the prompts exceeds {MOST_CHOICES} choices")
        return self


class ChatRequest(OpenRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[Tokens, meaning_none(-1, 0)] = None
    logprobs: bool = False
    top_logprobs: Annotated[Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None, meaning_none(-1)] = None
    tools: Annotated[
        list[Tool],
        Field(fail_fast=True, max_length=512),
        BeforeValidator(functions_of),
    ] = []
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    prediction: Prediction | None = None
    chat_template_kwargs: dict[str, Any] = {}
    enable_thinking: bool | None = None
    reasoning_effort: Annotated[str, Field(max_length=32)] | None = None
    reasoning: Reasoning | None = None
    thinking: ThinkingSwitch | None = None
    reasoning_budget: Budget = None
    thinking_budget: Budget = None
    thinking_budget_tokens: Budget = None
    continue_final_message: bool = False
    add_generation_prompt: bool = True

    @model_validator(mode="before")
    @classmethod
    def _counted(cls, body: Any) -> Any:
        """``"logprobs": 2`` is what completions have."""
        if isinstance(body, dict) and type(count := body.get("logprobs")) is int and 0 <= count <= MAX_LOGPROBS:
            return {**body, "logprobs": True, "top_logprobs": body.get("top_logprobs", count)}
        return body

    @property
    def wanted_logprobs(self) -> int:
        return (self.top_logprobs or 0) if self.logprobs or self.top_logprobs else -1

    @property
    def limit(self) -> int | None:
        """Output tokens at most; None: as many as there is room for."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def offered(self) -> list[Tool]:
        """The tools the model may call."""
        choice = self.tool_choice
        if choice.mode == "none":
            return []
        return [tool for tool in self.tools if not choice.names or tool.function.name in choice.names]

    @property
    def budget(self) -> int | None:
        """Tokens it may reason for; None: as many as it likes."""
        asked: tuple[int | None, ...] = (
            self.reasoning_budget,
            self.thinking_budget,
            self.thinking_budget_tokens,
            self.reasoning.max_tokens if self.reasoning is not None else None,
            self.thinking.budget_tokens if self.thinking is not None else None,
        )
        return next((each for each in asked if each is not None), None)

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """What the chat template is told besides messages and tools."""
        effort, thinks = self.reasoning_effort, self.enable_thinking
        if self.reasoning is not None:
            effort, thinks = effort or self.reasoning.effort, self.reasoning.enabled if thinks is None else thinks
        if self.thinking is not None and thinks is None and self.thinking.type in ("enabled", "disabled"):
            thinks = self.thinking.type == "enabled"
        if thinks is None and (effort == "none" or self.budget == 0):
            thinks = False
        found: dict[str, Any] = {}
        if effort and effort != "none":
            found["reasoning_effort"] = effort
        if thinks is not None:
            found |= {"enable_thinking": thinks, "thinking": thinks}  # Qwen's and DeepSeek's name for it
        return {**found, **self.chat_template_kwargs}

    @model_validator(mode="after")
    def _together(self) -> ChatRequest:
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise ValueError("tools: two functions have one name")
        if self.tool_choice.mode == "required" and not self.offered:
            wanted = next(iter(self.tool_choice.names), "")
            raise ValueError(
                f"tool_choice: no tool is called {wanted:.64}" if wanted else "tool_choice: it needs tools"
            )
        return self
