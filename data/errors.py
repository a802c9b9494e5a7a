"""Errors meant for the user: one clear message, no traceback at the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["CheckpointError", "ConfigError", "DataError", "MissingExtraError", "UserError", "nearest"]


class UserError(ValueError):
    """Something the user gave is wrong. The message says what came, what was expected and what exists."""


class DataError(UserError):
    """A demonstration store, or a value in it, is not what it must be."""


class ConfigError(UserError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or made for other observations or actions."""


class MissingExtraError(UserError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


_FEW = 6


def nearest(name: str, options: Iterable[str]) -> str:
    """Return a sentence that names the options closest to ``name``, and all when they are few or none is close."""
    known = sorted(options)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    question = f"Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
    everything = f"Known: {', '.join(known) if known else '(none)'}."
    return question if len(known) > _FEW and close else f"{question} {everything}".lstrip()
