"""What is told to users."""

from typing import Any


class UserError(ValueError):
    """A mistake of the user's, told in one line: where, which field, which value, and what to do."""


def brief(value: Any) -> str:
    """A value as messages show it: its first characters where there are many."""
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else f"{text[:40]} …"
