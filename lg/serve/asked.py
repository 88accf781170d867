"""What a client asks for: every field of a request is honoured, or refused by its name; none is passed over."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lg.inference.sampling import Sampling
from lg.serve.prompts import Conversation, Ids, Prompt, Words
from lg.serve.refusal import Refusal, shown, wrong
from lg.serve.tokenizer import Turn

# Fields that are not served, with the values that ask for nothing, and with their types.
_NOTHING: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
}
# They tell of the client, not of the answer.
_OF_CLIENT = {"user", "metadata", "safety_identifier", "prompt_cache_key"}
# What clients call those who speak, and what templates call them.
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MOST_STOPS = 4


@dataclass(frozen=True)
class Asked:
    """A request that is understood.

    Attributes:
        model: the name of the model.
        prompts: each gives one choice of the answer.
        max_new_tokens: of each; None is as many as there is room for.
        limit: the field that says so.
        sampling: how tokens are drawn.
        stop: texts that end a choice, and are not part of it.
        streamed: whether the answer is sent while it is written.
        usage: whether a streamed answer ends with the number of tokens.
        logprobs: how many of the likeliest tokens are told beside each token, 0 or 1; None is no log-probabilities.
    """

    model: str
    prompts: tuple[Prompt, ...]
    max_new_tokens: int | None
    limit: str
    sampling: Sampling
    stop: tuple[str, ...]
    streamed: bool
    usage: bool
    logprobs: int | None


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        Refusal: it is none.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        said = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refusal(400, f"the body is not JSON: {said}", None, "invalid_json") from error
    if not isinstance(fields, dict):
        raise Refusal(400, f"the body is a {type(fields).__name__}; a JSON object is needed", None, "invalid_json")
    return fields


def completion(body: bytes) -> Asked:
    """A request for completions.

    Raises:
        Refusal: a field cannot be honoured.
    """
    fields = _Fields(parsed(body))
    prompts = _prompts(fields.take("prompt"))
    number = fields.integer("logprobs", 0)
    most = ("max_tokens", fields.integer("max_tokens", 1, 16))
    return _asked(fields, prompts, most, None if number is None else ("logprobs", number))


def chat(body: bytes) -> Asked:
    """A request for the next turn of a conversation.

    Raises:
        Refusal: a field cannot be honoured.
    """
    fields = _Fields(parsed(body))
    turns = _turns(fields.take("messages"))
    most, newer = fields.integer("max_tokens", 1), fields.integer("max_completion_tokens", 1)
    if most is not None and newer is not None and most != newer:
        raise wrong("max_tokens", most, f"that of max_completion_tokens, {newer}, or left out")
    told, top = fields.boolean("logprobs"), fields.integer("top_logprobs", 0)
    if top is not None and not told:
        raise wrong("top_logprobs", top, "left out where logprobs is not true")
    limit = ("max_completion_tokens", newer) if most is None else ("max_tokens", most)
    return _asked(fields, (turns,), limit, ("top_logprobs", top or 0) if told else None)


class _Fields:
    """The fields of a request, each to be taken once."""

    def __init__(self, fields: dict[str, Any]) -> None:
        # A field that is null is one that is not there.
        self._left = {name: value for name, value in fields.items() if value is not None}

    def take(self, name: str) -> Any:
        return self._left.pop(name, None)

    def integer(self, name: str, least: int, default: int | None = None) -> int | None:
        value = self.take(name)
        if value is None:
            return default
        if type(value) is not int or value < least:
            raise wrong(name, value, f"an integer of at least {least}")
        return value

    def boolean(self, name: str) -> bool:
        value = self.take(name)
        if value is not None and type(value) is not bool:
            raise wrong(name, value, "true or false")
        return bool(value)

    def finish(self) -> None:
        """Refuses what nobody has taken, unless it asks for nothing."""
        for name, value in self._left.items():
            if name in _OF_CLIENT:
                continue
            if name not in _NOTHING:
                raise Refusal(400, f"{name}: this field is not known here", name, "unknown_parameter")
            if not any(type(value) is type(one) and value == one for one in _NOTHING[name]):
                allowed = " or ".join(json.dumps(one) for one in _NOTHING[name])
                said = f"{name}: {shown(value)} is not served here; allowed are {allowed}, or nothing"
                raise Refusal(400, said, name, "unsupported_parameter")


def _asked(
    fields: _Fields, prompts: tuple[Prompt, ...], most: tuple[str, int | None], logprobs: tuple[str, int] | None
) -> Asked:
    """What both kinds of requests have in common."""
    limit, max_new_tokens = most
    model = fields.take("model")
    if not isinstance(model, str):
        raise wrong("model", model, "the name of a model (GET /v1/models)")
    temperature = fields.take("temperature")
    penalty = fields.take("repetition_penalty")
    try:
        sampling = Sampling(
            temperature=1.0 if temperature is None else temperature,
            top_k=fields.take("top_k"),
            top_p=fields.take("top_p"),
            min_p=fields.take("min_p"),
            repetition_penalty=1.0 if penalty is None else penalty,
            seed=fields.take("seed"),
        )
    except ValueError as error:
        raise Refusal(400, str(error), str(error).partition(":")[0], "invalid_value") from error
    # Alternatives are not told; of one that takes the likeliest token, the likeliest is the one it took.
    if logprobs is not None and logprobs[1] > (
        1 if sampling.temperature == 0 and sampling.repetition_penalty == 1 else 0
    ):
        raise wrong(*logprobs, "0, or 1 with temperature 0: tokens that were not taken are not told")
    stop = _stops(fields.take("stop"))
    streamed = fields.boolean("stream")
    options = fields.take("stream_options")
    usage = _usage(options, streamed)
    fields.finish()
    return Asked(
        model,
        prompts,
        max_new_tokens,
        limit,
        sampling,
        stop,
        streamed,
        usage,
        None if logprobs is None else logprobs[1],
    )


def _usage(options: object, streamed: bool) -> bool:
    if options is None:
        return False
    if not streamed:
        raise wrong("stream_options", options, "left out where stream is not true")
    if not isinstance(options, dict) or not set(options) <= {"include_usage", "include_obfuscation"}:
        raise wrong("stream_options", options, 'an object such as {"include_usage": true}')
    if type(options.get("include_usage", False)) is not bool or options.get("include_obfuscation", False) is not False:
        raise wrong("stream_options", options, 'an object such as {"include_usage": true}')
    return bool(options.get("include_usage"))


def _stops(value: object) -> tuple[str, ...]:
    several = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(several, list) or len(several) > _MOST_STOPS:
        raise wrong("stop", value, f"a text, or a list of up to {_MOST_STOPS}")
    for one in several:
        if not isinstance(one, str) or not one:
            raise wrong("stop", one, "a text that is not empty")
    return tuple(several)


def _prompts(value: object) -> tuple[Prompt, ...]:
    one = _prompt(value)
    if one is not None:
        return (one,)
    several = [_prompt(each) for each in value] if isinstance(value, list) else []
    found = tuple(each for each in several if each is not None)
    if not found or len(found) < len(several):
        raise wrong("prompt", value, "a text, a list of token ids, or a list of these, none of them empty")
    return found


def _prompt(value: object) -> Prompt | None:
    """A text or ids; None if it is neither."""
    if isinstance(value, str):
        return Words(_whole("prompt", value))
    if isinstance(value, list) and value and all(type(each) is int and 0 <= each < 2**63 for each in value):
        return Ids(tuple(value))
    return None


def _turns(value: object) -> Conversation:
    if not isinstance(value, list) or not value:
        raise wrong("messages", value, "a list of messages, at least one")
    return Conversation(tuple(_turn(each, f"messages[{number}]") for number, each in enumerate(value)))


def _turn(value: object, place: str) -> Turn:
    if not isinstance(value, dict):
        raise wrong(place, value, "an object with role and content")
    for name, of_field in value.items():
        if name not in ("role", "content") and of_field not in (None, []):
            raise Refusal(400, f"{place}.{name}: this is not served here", f"{place}.{name}", "unsupported_parameter")
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        raise wrong(f"{place}.role", role, f"one of {', '.join(_ROLES)}")
    if isinstance(content, list):
        parts = []
        for number, part in enumerate(content):
            text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
            if not isinstance(text, str):
                raise wrong(f"{place}.content[{number}]", part, 'text, as {"type": "text", "text": "..."}')
            parts.append(text)
        content = "".join(parts)
    if not isinstance(content, str):
        raise wrong(f"{place}.content", content, "a text")
    return Turn(_ROLES[role], _whole(f"{place}.content", content))


def _whole(name: str, text: str) -> str:
    """A text, if it is one that UTF-8 can write."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        said = f"{name}: it has half of a surrogate pair at {error.start}, which is no character"
        raise Refusal(400, said, name, "invalid_value") from error
    return text
