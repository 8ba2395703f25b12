"""Imports the classes of networks that a user's own sweep names."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from subspace_adv.errors import UserError
from subspace_adv.models import hand_over, is_class_name, is_known
from subspace_adv.sweep import Sweep


def own_classes(sweep: Sweep) -> list[str]:
    """Names of the classes among a sweep's architectures."""
    return [name for name in dict.fromkeys(sweep.values("architecture")) if is_class_name(name)]


def import_class(name: str) -> None:
    """Import a class from the working directory or from what is installed, and hand it over, once in a process.

    Raises:
        UserError: if it cannot be imported, or is no linen module, with the reason.
    """
    if is_known(name):
        return
    module, _, attribute = name.partition(":")
    try:
        with _working_directory():
            found = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # whatever the user's file does as it is imported
        reason = " ".join(str(error).split()) or type(error).__name__
        where = f"; {Path.cwd()} and what is installed are looked through" if isinstance(error, ImportError) else ""
        raise UserError(f"architecture {name!r}: cannot be imported: {reason}{where}") from None
    hand_over(name, found)


@contextmanager
def _working_directory() -> Iterator[None]:
    """With the working directory among the places that modules are imported from."""
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path.pop(0)
