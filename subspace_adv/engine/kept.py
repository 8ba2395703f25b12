"""Compiled programs kept on disk, so that no later run compiles them again."""

import contextlib
import functools
import hashlib
import os
import platform
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import platformdirs
from jax.experimental.compilation_cache import compilation_cache

_CANNOT_READ = "Error reading persistent compilation cache entry for "  # as JAX warns
_CANNOT_WRITE = "Error writing persistent compilation cache entry for "


def compiled_or_kept(lowered: jax.stages.Lowered, options: dict[str, str | bool]) -> Any:
    """A program compiled, or read from the folder of compiled programs; what cannot be kept is told once."""
    keep_compiled()
    with warnings.catch_warnings(record=True) as told, _keyed_alike_in_any_folder():
        warnings.filterwarnings("always", message=_CANNOT_WRITE)
        warnings.filterwarnings("error", message=_CANNOT_READ)
        try:
            program = lowered.compile(compiler_options=options)
        except UserWarning as error:
            if not str(error).startswith(_CANNOT_READ):
                raise
            warnings.filterwarnings("ignore", message=_CANNOT_READ)
            program = _compiled_apart(lowered, options)
    for warning in told:
        if str(warning.message).startswith(_CANNOT_WRITE):
            _tell_unkept(str(warning.message).partition(": ")[2].partition(": '")[0])  # without the file
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return program


def _compiled_apart(lowered: jax.stages.Lowered, options: dict[str, str | bool]) -> Any:
    """A program compiled whose entry in the folder is damaged; that is replaced by a whole one.

    An entry is there in part while another process writes it, as JAX does in place, and after a kill or a full disk;
    JAX would never write it again. So the program is compiled into a folder of its own, and the entry that is made
    there takes the damaged one's place in one step. A process that still writes that one is not disturbed, and no
    other entry is touched.
    """
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    try:
        apart = tempfile.TemporaryDirectory(prefix=".apart-", dir=folder, ignore_cleanup_errors=True)
    except OSError:  # nothing can be written there
        return lowered.compile(compiler_options=options)
    with apart as own:
        try:
            _keep_in(own)
            program = lowered.compile(compiler_options=options)
        finally:
            _keep_in(folder)
        for entry in sorted(Path(own).glob("*-*")):  # where JAX limits sizes, when an entry was read, before the entry
            with contextlib.suppress(OSError):  # as where the system holds on to a file that is read; a later run tries
                entry.replace(Path(folder) / entry.name)
    return program


def _keep_in(folder: str) -> None:
    """Let JAX keep what it compiles in a folder, from now on."""
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()  # it has opened the folder before, or found that there is none


@contextlib.contextmanager
def _keyed_alike_in_any_folder() -> Iterator[None]:
    """Without XLA's own caches, whose place in the folder would be a part of every program's key."""
    before = jax.config.jax_persistent_cache_enable_xla_caches  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_persistent_cache_enable_xla_caches", "")
    try:
        yield
    finally:
        jax.config.update("jax_persistent_cache_enable_xla_caches", before)


@functools.cache
def _tell_unkept(reason: str) -> None:
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    warnings.warn(
        f"{folder}: compiled programs cannot be kept there, and each run compiles anew: {reason}", stacklevel=2
    )


def _processor(cpuinfo: Path) -> str:
    """What compiled code depends on: the kind of machine, and its processor's name and features where they are told."""
    if not cpuinfo.exists():
        return f"{platform.machine()}\n{platform.processor()}"
    of_the_first = cpuinfo.read_text().partition("\n\n")[0].splitlines()
    features = [line for line in of_the_first if line.startswith(("flags", "Features", "model name"))]
    return "\n".join([platform.machine(), *features])


@functools.cache
def keep_compiled() -> None:
    """Keep compiled programs in the user's cache folder.

    Unless JAX was given another one, or none can be written, or JAX was imported before this package, on CPU: then XLA
    would say of every program that it loads what `subspace_adv/__init__.py` keeps it from.
    """
    if jax.default_backend() == "cpu" and int(os.environ.get("TF_CPP_MIN_LOG_LEVEL", "0")) < 3:
        return
    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return
    # Code for one processor may be unfit for another that shares the home folder.
    processor = hashlib.sha256(_processor(Path("/proc/cpuinfo")).encode()).hexdigest()[:8]
    folder = platformdirs.user_cache_path("subspace-adv") / f"compiled-{processor}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    _keep_in(str(folder))
