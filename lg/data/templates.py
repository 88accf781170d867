"""What a conversation looks like to a model: templates put its special tokens around what each side said.

Each gives the ids that ``apply_chat_template`` of transformers gives for the same template, with a tokenizer that parts
texts at special tokens and leaves the rest as it is, as those of byte-level BPE do.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from lg.data.marked import Mark, Plain
from lg.data.source import KEY, fingerprint_of

ANSWERING = "assistant"
"""The role whose words are targets, with the token that ends them."""

_KEY = f"{KEY}.init_args.template"
_CONFIG, _TEMPLATE, _TOKENIZER = "tokenizer_config.json", "chat_template.jinja", "tokenizer.json"
_SPECIAL = "special_tokens_map.json"
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one thing, the first that of most templates
_HIDDEN = re.compile("\ue000(\\d+)\ue001")  # stands for what a message says while a template is filled in
_BEGINS, _ENDS = "\ue002", "\ue003"  # stand around what the tag `generation` does
_GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")


class Message(NamedTuple):
    """What one side said.

    Attributes:
        role: who: "system", "user", "assistant", "tool".
        content: what.
        more: whatever else the message has: `tool_calls`, `reasoning_content`, `name`.
    """

    role: str
    content: str
    more: Mapping[str, object] = MappingProxyType({})


class Template(ABC):
    """A way to write conversations."""

    @abstractmethod
    def render(self, messages: Sequence[Message]) -> list[Plain | Mark]:
        """A conversation in pieces, the answers and their ends counted.

        Raises:
            ValueError: the template does not allow it; without a YAML key.
        """

    def render_row(self, messages: Sequence[Message], beside: Mapping[str, object]) -> list[Plain | Mark]:
        """As `render`, of a conversation with what stands beside it; a template of roles and contents refuses more.

        Args:
            messages: the conversation.
            beside: `tools` and `documents`, those there are.

        Raises:
            ValueError: as `render`; or there is something that the template has no words for.
        """
        more = [(f"`{key}` of message {n}", each) for n, said in enumerate(messages) for key, each in said.more.items()]
        for what, value in [*more, *((f"`{key}` beside the messages", each) for key, each in beside.items())]:
            if value is not None and value not in ("", [], {}):
                raise ValueError(
                    f"{what} is not allowed, for the template {type(self).__name__} has no words for it; null is "
                    f"needed, or a template that has: Jinja"
                )
        return self.render(messages)

    def fingerprint(self) -> str:
        """What tells it from any other that renders otherwise."""
        return repr(self)


@dataclass(frozen=True)
class ChatML(Template):
    """Turns between ``<|im_start|>`` and ``<|im_end|>``, as SmolLM2 and Qwen have them.

    Args:
        system: what the system says in conversations in which it says nothing; ``null`` is nothing. A model that was
            trained with a sentence there, as SmolLM2 and Qwen2.5, wants that one.
    """

    system: str | None = None

    def render(self, messages: Sequence[Message]) -> list[Plain | Mark]:
        if self.system is not None and (not messages or messages[0].role != "system"):
            messages = [Message("system", self.system), *messages]
        pieces: list[Plain | Mark] = []
        for role, content, _ in messages:
            counted = role == ANSWERING
            pieces += [Mark("<|im_start|>"), Plain(f"{role}\n"), Plain(content, counted), Mark("<|im_end|>", counted)]
            pieces.append(Plain("\n"))
        return pieces


@dataclass(frozen=True)
class Llama3(Template):
    """A head between ``<|start_header_id|>`` and ``<|end_header_id|>``, and ``<|eot_id|>`` at the end of a turn.

    As the template of Llama 3 it takes white space from both ends of what is said.
    """

    def render(self, messages: Sequence[Message]) -> list[Plain | Mark]:
        pieces: list[Plain | Mark] = [Mark("<|begin_of_text|>")]
        for role, content, _ in messages:
            counted = role == ANSWERING
            pieces += [Mark("<|start_header_id|>"), Plain(role), Mark("<|end_header_id|>"), Plain("\n\n")]
            pieces += [Plain(content.strip(), counted), Mark("<|eot_id|>", counted)]
        return pieces


@dataclass(frozen=True)
class Jinja(Template):
    """The template in a folder that transformers saved: of ``chat_template.jinja``, or of ``tokenizer_config.json``.

    It is filled in twice, with what is said and with a sign in its place, so that it is known where the words lie; a
    template that changes them in another way than to take white space from their ends is refused. It is run in jinja2's
    sandbox. It is given all keys of a message, such as ``tool_calls``, and the row's ``tools`` and ``documents``; of
    these only special tokens that are spelled out are hidden, so that it may write them as it likes.

    Targets are the answers and the tokens that end them; but of a template that says itself what the model writes, by
    transformers' ``{% generation %}``, exactly what is between that and ``{% endgeneration %}``. What a template writes
    of an answer's other keys is part of the answer: it is what is not there when it is filled in without them.

    Args:
        path: the folder; ``~`` is understood.

    Raises:
        ValueError: there is no template, or it is none.
    """

    path: str

    def render(self, messages: Sequence[Message]) -> list[Plain | Mark]:
        return self.render_row(messages, {})

    def render_row(self, messages: Sequence[Message], beside: Mapping[str, object]) -> list[Plain | Mark]:
        for name, value in beside.items():
            is_list = isinstance(value, list) and all(isinstance(each, dict) for each in value)
            if value is not None and not is_list and re.search(rf"\b{name}\b", self._read[0]):
                raise ValueError(f"`{name}` beside the messages is not allowed; a list of objects is needed, or null")
        now = datetime.now()
        filled = self._filled([_keys(message) for message in messages], beside, now)
        spelled: list[str] = []  # special tokens in what is not content; their signs have the numbers after the last's

        def hide(text: str) -> str:
            def sign(found: re.Match[str]) -> str:
                spelled.append(found[0])
                return _sign(len(messages) + len(spelled) - 1)

            return self._spelled.sub(sign, text)

        hidden = [_keys(message, hide) for message in messages]
        beside = {name: _plain(value, hide) for name, value in beside.items()}
        # A template may ask whether there is content: then what is empty has no sign.
        for least in (0, 1):
            for n, message in enumerate(messages):
                hidden[n]["content"] = _sign(n) if len(message.content) >= least else ""
            outline = self._without((), hidden, beside, now)
            if outline is None:
                continue
            raw = [message.content for message in messages]
            for contents in (raw, [content.strip() for content in raw]):
                said = [*contents, *spelled]
                if filled != _HIDDEN.sub(lambda found, said=said: said[int(found[1])], outline):  # type: ignore[misc]
                    continue
                if _GENERATION.search(self._read[0]):
                    return self._generated(outline, said)
                return self._parted(outline, said, messages, self._spans(outline, messages, hidden, beside, now))
        raise ValueError("the template changes what is said, so that nobody knows which tokens are an answer's")

    def fingerprint(self) -> str:
        """Of the texts that it is made of."""
        template, marks, names = self._read
        return fingerprint_of(iter([template.encode(), *(mark.encode() for mark in marks), repr(names).encode()]))

    def _parted(
        self, outline: str, said: Sequence[str], messages: Sequence[Message], spans: Sequence["_Span"]
    ) -> list[Plain | Mark]:
        pieces: list[Plain | Mark] = []
        answer = False  # until its end
        at = 0
        for begin, end, ended in [*spans, _Span(len(outline), len(outline), True)]:
            for text, within in ((outline[at:begin], False), (outline[max(at, begin) : end], True)):
                for place, each in enumerate(_HIDDEN.split(text)):
                    if place % 2:
                        n = int(each)
                        answer = within or (n < len(messages) and messages[n].role == ANSWERING)
                        pieces.append(Plain(said[n], answer))
                        continue
                    for piece in self._around(each):
                        if within:
                            answer = True
                        elif isinstance(piece, Plain):
                            answer = answer and piece.text.isspace()
                        pieces.append(piece._replace(counted=answer))
                        answer = answer and (within or isinstance(piece, Plain))
            at = max(at, end)
            answer = answer and not ended
        return pieces

    def _spans(
        self,
        outline: str,
        messages: Sequence[Message],
        hidden: Sequence[dict[str, object]],
        beside: Mapping[str, object],
        now: datetime,
    ) -> list["_Span"]:
        """Where in an outline those answers are of which it has more than content."""
        ours = [n for n, message in enumerate(messages) if message.role == ANSWERING and len(hidden[n]) > 2]
        if not ours or self._without(ours, hidden, beside, now) == outline:
            return []
        spans = []
        atoms = self._atoms(outline)
        for n in ours:
            keys = ", ".join(f"`{key}`" for key in messages[n].more)
            unknown = f"nobody knows which tokens are those of {keys} of message {n}, for the template"
            bare = self._without([n], hidden, beside, now)
            if bare is None:
                raise ValueError(f"{unknown} does not allow the message without; one with {{% generation %}} is needed")
            others = self._atoms(bare)
            begin = _common(atoms, others)
            back = _common(atoms[begin:][::-1], others[begin:][::-1])
            more, less = atoms[begin : len(atoms) - back], others[begin : len(others) - back]
            if not more:
                continue
            if any(_sign(m) in more for m in range(len(messages)) if m != n):
                raise ValueError(f"{unknown} writes them in several places; one with {{% generation %}} is needed")
            start = len("".join(atoms[:begin]))
            content = [found.span() for found in re.finditer(_sign(n), outline)]
            spans.append(
                _Span(
                    min([start, *(first for first, _ in content)]),
                    max([start + len("".join(more)), *(last for _, last in content)]),
                    self._is_end(more) and self._is_end(less),
                )
            )
        return sorted(spans)

    def _without(
        self, bare: Sequence[int], hidden: Sequence[dict[str, object]], beside: Mapping[str, object], now: datetime
    ) -> str | None:
        """The outline if some messages had a role and content alone; None if the template refuses that."""
        least = [{"role": each["role"], "content": _sign(n)} if n in bare else each for n, each in enumerate(hidden)]
        try:
            return self._filled(least, beside, now)
        except ValueError:
            return None

    def _is_end(self, atoms: Sequence[str]) -> bool:
        """Whether the last of some atoms, but for white space, is a special token."""
        return next((atom for atom in reversed(atoms) if not atom.isspace()), "") in self._read[1]

    def _generated(self, outline: str, said: Sequence[str]) -> list[Plain | Mark]:
        pieces: list[Plain | Mark] = []
        depth = 0  # of signs around
        for place, text in enumerate(_HIDDEN.split(outline)):
            if place % 2:
                pieces.append(Plain(said[int(text)], depth > 0))
                continue
            for between in re.split(f"([{_BEGINS}{_ENDS}])", text):
                depth += (between == _BEGINS) - (between == _ENDS)
                if between not in (_BEGINS, _ENDS):
                    pieces += [piece._replace(counted=depth > 0) for piece in self._around(between)]
        return pieces

    def _around(self, text: str) -> list[Plain | Mark]:
        """The pieces of what a template puts between messages."""
        split = enumerate(self._marks.split(text) if self._read[1] else [text])
        return [Mark(piece) if number % 2 else Plain(piece) for number, piece in split if piece]

    def _atoms(self, outline: str) -> list[str]:
        """An outline's signs, special tokens, and characters."""
        atoms: list[str] = []
        for place, text in enumerate(_HIDDEN.split(outline)):
            if place % 2:
                atoms.append(_sign(int(text)))
                continue
            for piece in self._around(text):
                atoms += [piece.token] if isinstance(piece, Mark) else piece.text
        return atoms

    def _filled(self, messages: Sequence[Mapping[str, object]], beside: Mapping[str, object], now: datetime) -> str:
        import jinja2

        try:
            text: str = self._compiled.render(
                messages=messages,
                add_generation_prompt=False,
                tools=beside.get("tools"),
                documents=beside.get("documents"),
                strftime_now=now.strftime,  # one time, however often it is filled in
                **self._read[2],
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise ValueError(f"the template says: {error}") from error
        return text

    @cached_property
    def _compiled(self) -> Any:
        import jinja2
        import jinja2.sandbox

        # As transformers has it.
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _json
        environment.filters["generated"] = lambda text: f"{_BEGINS}{text}{_ENDS}"
        environment.globals["raise_exception"] = _raised
        try:
            return environment.from_string(_GENERATION.sub(_as_filter, self._read[0]))
        except jinja2.TemplateError as error:
            raise ValueError(f"{_KEY}.init_args.path: the template in {self.path!r} is none: {error}") from error

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        # Of two that begin at one place the longer one, as the tokenizer finds them.
        longest_first = sorted(self._read[1], key=lambda mark: (-len(mark), mark))
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    @cached_property
    def _spelled(self) -> re.Pattern[str]:
        """What in a text would be taken for a special token, or for a sign of ours."""
        longest_first = sorted(self._read[1], key=lambda mark: (-len(mark), mark))
        return re.compile("|".join([*map(re.escape, longest_first), f"[\ue000-{_ENDS}]"]))

    @cached_property
    def _read(self) -> tuple[str, tuple[str, ...], dict[str, str]]:
        """The template, the special tokens, and those that have names."""
        folder = Path(self.path).expanduser()
        key = f"{_KEY}.init_args.path: {self.path!r}"
        config = _object(folder / _CONFIG, key)
        template = config.get("chat_template")
        if isinstance(template, list):  # several, by name
            template = next((each["template"] for each in template if each.get("name") == "default"), None)
        if (folder / _TEMPLATE).is_file():
            template = (folder / _TEMPLATE).read_text(encoding="utf-8")
        if not isinstance(template, str):
            raise ValueError(
                f"{key} has no template; a folder with {_TEMPLATE}, or {_CONFIG} with a `chat_template`, is needed"
            )
        added = [*_object(folder / _TOKENIZER, key).get("added_tokens", []), *_values(config, "added_tokens_decoder")]
        marks = {str(token["content"]) for token in added if token.get("special")}
        # As transformers has it: a config that lists added tokens is a newer one, which has the names too.
        named = config if "added_tokens_decoder" in config else {**config, **_object(folder / _SPECIAL, key)}
        contents = {name: each.get("content") if isinstance(each, dict) else each for name, each in named.items()}
        names = {name: each for name, each in contents.items() if name.endswith("_token") and isinstance(each, str)}
        return template, tuple(sorted(marks)), names


class _Span(NamedTuple):
    """From where to where an answer reaches in an outline, and whether the token that ends it is in there."""

    begin: int
    end: int
    ended: bool


def _object(path: Path, key: str) -> dict[str, Any]:
    """The JSON object of a file; an empty one if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{key}: {path.name} is not JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def _values(config: dict[str, Any], name: str) -> list[dict[str, Any]]:
    values = config.get(name, {})
    return list(values.values()) if isinstance(values, dict) else []


def _keys(message: Message, said: Callable[[str], str] = str) -> dict[str, object]:
    """A message as transformers hands it to a template: without nulls, its reasoning under the usual name too."""
    more = {key: _plain(value, said) for key, value in message.more.items() if value is not None}
    reasoning = next((more[name] for name in _REASONING if name in more), None)
    if reasoning is not None:
        more = {"thinking": reasoning, **more, "reasoning_content": reasoning}
    return {"role": message.role, "content": message.content, **more}


def _plain(value: object, said: Callable[[str], str]) -> object:
    """A value as JSON has it, with each text as ``said`` gives it; what JSON has not is a word for its type."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return said(value)
    if isinstance(value, Mapping):
        return {_plain(key, said): _plain(each, said) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, said) for each in value]
    return f"<{type(value).__name__}>"


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many at the beginning of both are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _sign(number: int) -> str:
    return f"\ue000{number}\ue001"


def _json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _as_filter(tag: re.Match[str]) -> str:
    """The tag `generation`, or its end, as a block that jinja2 has."""
    return f"{tag[1]}{'endfilter' if tag[2] else 'filter generated'}{tag[3]}"


def _raised(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)
