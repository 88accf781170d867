"""What a conversation looks like to a model: templates put its special tokens around what each side said.

Each gives the ids that ``apply_chat_template`` of transformers gives for the same template, with a tokenizer that parts
texts at special tokens and leaves the rest as it is, as those of byte-level BPE do.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from lg.data.marked import Mark, Plain
from lg.data.source import KEY, fingerprint_of

ANSWERING = "assistant"
"""The role whose words are targets, with the token that ends them."""

_KEY = f"{KEY}.init_args.template"
_CONFIG, _TEMPLATE, _TOKENIZER = "tokenizer_config.json", "chat_template.jinja", "tokenizer.json"
_HIDDEN = re.compile("\ue000(\\d+)\ue001")  # stands for what a message says while a template is filled in
_BEGINS, _ENDS = "\ue002", "\ue003"  # stand around what the tag `generation` does
_GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")


class Message(NamedTuple):
    """What one side said.

    Attributes:
        role: who: "system", "user", "assistant", "tool".
        content: what.
    """

    role: str
    content: str


class Template(ABC):
    """A way to write conversations."""

    @abstractmethod
    def render(self, messages: Sequence[Message]) -> list[Plain | Mark]:
        """A conversation in pieces, the answers and their ends counted.

        Raises:
            ValueError: the template does not allow it; without a YAML key.
        """

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
        for role, content in messages:
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
        for role, content in messages:
            counted = role == ANSWERING
            pieces += [Mark("<|start_header_id|>"), Plain(role), Mark("<|end_header_id|>"), Plain("\n\n")]
            pieces += [Plain(content.strip(), counted), Mark("<|eot_id|>", counted)]
        return pieces


@dataclass(frozen=True)
class Jinja(Template):
    """The template in a folder that transformers saved: of ``chat_template.jinja``, or of ``tokenizer_config.json``.

    It is filled in twice, with what is said and with a sign in its place, so that it is known where the words lie; a
    template that changes them in another way than to take white space from their ends is refused. It is run in jinja2's
    sandbox.

    Targets are the answers and the tokens that end them; but of a template that says itself what the model writes, by
    transformers' ``{% generation %}``, exactly what is between that and ``{% endgeneration %}``.

    Args:
        path: the folder; ``~`` is understood.

    Raises:
        ValueError: there is no template, or it is none.
    """

    path: str

    def render(self, messages: Sequence[Message]) -> list[Plain | Mark]:
        filled = self._filled(messages)
        outline = self._filled([Message(role, f"\ue000{n}\ue001") for n, (role, _) in enumerate(messages)])
        for contents in ([message.content for message in messages], [message.content.strip() for message in messages]):
            if filled == _HIDDEN.sub(lambda found, said=contents: said[int(found[1])], outline):  # type: ignore[misc]
                return self._parted(outline, contents, messages)
        raise ValueError("the template changes what is said, so that nobody knows which tokens are an answer's")

    def fingerprint(self) -> str:
        """Of the texts that it is made of."""
        template, marks, names = self._read
        return fingerprint_of(iter([template.encode(), *(mark.encode() for mark in marks), repr(names).encode()]))

    def _parted(self, outline: str, contents: Sequence[str], messages: Sequence[Message]) -> list[Plain | Mark]:
        if _GENERATION.search(self._read[0]):
            return self._generated(outline, contents)
        pieces: list[Plain | Mark] = []
        answer = False  # until its end
        for place, text in enumerate(_HIDDEN.split(outline)):
            if place % 2:
                answer = messages[int(text)].role == ANSWERING
                pieces.append(Plain(contents[int(text)], answer))
                continue
            for piece in self._around(text):
                if isinstance(piece, Mark):
                    pieces.append(Mark(piece.token, answer))
                    answer = False
                else:
                    answer = answer and piece.text.isspace()
                    pieces.append(Plain(piece.text, answer))
        return pieces

    def _generated(self, outline: str, contents: Sequence[str]) -> list[Plain | Mark]:
        pieces: list[Plain | Mark] = []
        depth = 0  # of signs around
        for place, text in enumerate(_HIDDEN.split(outline)):
            if place % 2:
                pieces.append(Plain(contents[int(text)], depth > 0))
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

    def _filled(self, messages: Sequence[Message]) -> str:
        import jinja2

        try:
            text: str = self._compiled.render(
                messages=[message._asdict() for message in messages],
                add_generation_prompt=False,
                tools=None,
                documents=None,
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
        names = {
            name: str(token["content"] if isinstance(token, dict) else token)
            for name, token in config.items()
            if name.endswith("_token") and isinstance(token, str | dict)
        }
        return template, tuple(sorted(marks)), names


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


def _json(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _as_filter(tag: re.Match[str]) -> str:
    """The tag `generation`, or its end, as a block that jinja2 has."""
    return f"{tag[1]}{'endfilter' if tag[2] else 'filter generated'}{tag[3]}"


def _raised(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)
