"""What a client is told that asks for something it cannot have, in the form that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: one sentence.
        param: the field that is at fault, if one is.
        code: a word for programs.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def shown(value: object) -> str:
    """A value as it is told, if it is long then its beginning."""
    said = repr(value)
    return said if len(said) <= 100 else f"{said[:100]}..."


def wrong(name: str, value: object, needed: str) -> Refusal:
    """That a field has a value which is not allowed."""
    return Refusal(400, f"{name}: {shown(value)} is not allowed; it must be {needed}", name, "invalid_value")
