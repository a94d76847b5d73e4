"""The API: OpenAI's requests with a `context` field, its errors and its answers.

A parameter that is not listed here is refused: an answer never leaves out silently what was asked.
"""

from __future__ import annotations

import errno
import json
import logging
import time
from dataclasses import asdict
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException

from latentwire.reading import shortened
from latentwire.serve.context import TooLongError, Turn
from latentwire.serve.decoding import BusyError
from latentwire.serve.store import Entry, StoreError, UnknownContextError

log = logging.getLogger("latentwire.serve")


class ApiError(Exception):
    """An error as OpenAI's clients expect it, with its HTTP status."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None):
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def as_api_error(error: Exception) -> ApiError:
    """An error as clients are told it. Those that are ours, and not a client's, are logged and not
    shown."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, "invalid_request", error.detail)
    if isinstance(error, BusyError):
        return ApiError(429, "busy", str(error))
    if isinstance(error, TimeoutError):
        return ApiError(504, "timeout", str(error))
    if isinstance(error, UnknownContextError):
        return ApiError(404, "context_not_found", str(error), "context")
    if isinstance(error, StoreError):
        return ApiError(409, "context_unusable", str(error), "context")
    if isinstance(error, TooLongError):
        return ApiError(400, "context_length_exceeded", str(error))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ApiError(507, "no_space", "the store's disk is full; nothing was changed")
    if isinstance(error, ValueError):
        return ApiError(400, "invalid_value", " ".join(str(error).split()))
    log.error("a request failed", exc_info=error)
    return ApiError(500, "internal_error", "the server failed on this request; its log says why")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Part(Strict):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class MessageIn(Strict):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None

    def turn(self) -> Turn:
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return Turn("system" if self.role == "developer" else self.role, text)


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


One = Annotated[float, Field(ge=1, le=1)]
Zero = Annotated[float, Field(ge=0, le=0)]


class Asked(Strict):
    """Fields that both kinds of completion take."""

    model: str
    context: str | list[str] | None = None
    """Ids or names of stored contexts, which are read one after another."""
    text: str | None = None
    """A text that the model reads itself, where latents would stand."""
    text_tokens: int | None = Field(None, ge=1)
    """Its first so many tokens alone."""
    soft_prompt: bool = True
    """True where the wire's soft prompt, which asks for a short span, stands behind the context."""
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    """0, the most probable token, if it is not given."""
    seed: int | None = Field(None, ge=0, lt=1 << 32)
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    # These may be given at values that change nothing.
    n: One | None = None
    top_p: One | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None

    @property
    def contexts(self) -> list[str]:
        """Names of the contexts."""
        if self.context is None:
            return []
        return [self.context] if isinstance(self.context, str) else self.context

    def options(self) -> dict[str, Any]:
        """Options of a Request."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stop) > 4 or not all(stop):
            raise ApiError(400, "invalid_value", "stop has at most 4 texts, none empty", "stop")
        return {
            "max_new_tokens": self.max_tokens or 256,
            "temperature": self.temperature or 0.0,
            "seed": self.seed or 0,
            "stop": tuple(stop),
        }


class ChatAsked(Asked):
    messages: list[MessageIn] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: Literal[False] | None = None

    def options(self) -> dict[str, Any]:
        options = super().options()
        if self.max_completion_tokens is not None:
            options["max_new_tokens"] = self.max_completion_tokens
        return options


class CompletionAsked(Asked):
    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]
    echo: Literal[False] | None = None
    best_of: One | None = None
    suffix: None = None
    logprobs: None = None

    @property
    def words(self) -> str:
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


class Upload(Strict):
    """A context to compress."""

    text: str
    name: str | None = Field(None, min_length=1, max_length=500)
    ratio: int | None = Field(None, ge=1, le=4096)
    bits: int | None = None
    tokens: bool = False
    """True to be answered with the text's tokens, and which share of all heads kept each."""


class LensAsked(Strict):
    """A question to the lens: tokens of a text, one of them explained, or its words edited."""

    text: str = Field(max_length=2000)
    token: int | None = Field(None, ge=0)
    words: str | None = Field(None, min_length=1, max_length=2000)


class SearchAsked(Strict):
    """A question whose answer is searched."""

    model: str
    question: str = Field(min_length=1, max_length=2000)
    answer: str | None = Field(None, min_length=1, max_length=200)
    """The right answer: the reward is whether the words have it. The model's confidence if None."""
    steps: int = Field(5, ge=1, le=50)
    lr: float = Field(0.03, gt=0, le=10)
    max_tokens: int = Field(64, ge=1, le=1024)


def parsed(kind: type[Any], data: bytes | dict[str, Any]) -> Any:
    """A request's JSON or fields as a model. Raises ApiError that names the first wrong field."""
    try:
        if isinstance(data, dict):
            return kind.model_validate(data)
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(str(part) for part in first["loc"])
        if first["type"] == "json_invalid":
            raise ApiError(400, "invalid_json", f"the body is not JSON: {first['msg']}") from None
        if first["type"] == "extra_forbidden":
            message = f"{at[:80]} is not supported; leave it out"
            raise ApiError(400, "unsupported_parameter", message, at[:80]) from None
        message = f"{at or 'the body'}: {first['msg']}; got {shortened(first['input'])}"
        raise ApiError(400, "invalid_value", message, at or None) from None


class Writer:
    """Answers of one completion, whole or in chunks."""

    def __init__(self, asked: Asked, usage: dict[str, int]):
        self.chat = isinstance(asked, ChatAsked)
        self.asked, self.usage = asked, usage
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid4().hex}"
        self.created = int(time.time())

    def whole(self, text: str, finish: str, tokens: int) -> dict[str, Any]:
        """The answer that is sent at once."""
        message = {"message": {"role": "assistant", "content": text, "refusal": None}}
        return self._answer("chat.completion", message if self.chat else {"text": text}, finish) | {
            "usage": self.counted(tokens)
        }

    def chunk(self, text: str, finish: str | None = None, first: bool = False) -> dict[str, Any]:
        """One piece of a stream."""
        role = {"role": "assistant"} if first else {}
        delta = {"delta": {**role, **({"content": text} if text or first else {})}}
        return self._answer("chat.completion.chunk", delta if self.chat else {"text": text}, finish)

    def last(self, tokens: int) -> dict[str, Any]:
        """The chunk that counts, after all text."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return self._head(kind) | {"choices": [], "usage": self.counted(tokens)}

    def counted(self, tokens: int) -> dict[str, int]:
        """Counts tokens that the model saw as tokens or said, and latents beside them."""
        total = self.usage["prompt_tokens"] + tokens
        return {"completion_tokens": tokens, "total_tokens": total, **self.usage}

    def _answer(self, kind: str, content: dict[str, Any], finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish}
        return self._head(kind if self.chat else "text_completion") | {"choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        model = self.asked.model
        return {"id": self.id, "object": kind, "created": self.created, "model": model}


def unknown_model(name: str, known: list[str]) -> ApiError:
    message = f"no model {name[:80]!r}; expected one of {', '.join(known)}"
    return ApiError(404, "model_not_found", message, "model")


def model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "latentwire"}


def shown(entry: Entry) -> dict[str, Any]:
    return {"id": entry.id, "object": "context", **asdict(entry)}


def line(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"
