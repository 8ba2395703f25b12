"""Compiled programs kept on disk, so that no later run compiles them again."""

import functools
import hashlib
import os
import platform
import warnings
from pathlib import Path
from typing import Any

import jax
import platformdirs
from jax.experimental.compilation_cache import compilation_cache

_CANNOT_READ = "Error reading persistent compilation cache entry for "  # as JAX warns
_CANNOT_WRITE = "Error writing persistent compilation cache entry for "


def compiled_or_kept(lowered: jax.stages.Lowered, options: dict[str, str | bool]) -> Any:
    """A program compiled, or read from the folder of compiled programs; what cannot be kept is told once."""
    kept = keep_compiled()
    with warnings.catch_warnings(record=True) as told:
        warnings.filterwarnings("always", message=_CANNOT_WRITE)
        if kept:
            warnings.filterwarnings("error", message=_CANNOT_READ)
        try:
            program = lowered.compile(compiler_options=options)
        except UserWarning as error:  # a kill or a full disk left a file in part, which JAX would never write again
            name = str(error).removeprefix(_CANNOT_READ).split("'")[1]
            for entry in kept.glob(f"{name}-*") if kept else ():
                entry.unlink(missing_ok=True)
            program = lowered.compile(compiler_options=options)
    for warning in told:
        if str(warning.message).startswith(_CANNOT_WRITE):
            _tell_unkept(str(warning.message).partition(": ")[2].partition(": '")[0])  # without the file
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return program


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
def keep_compiled() -> Path | None:
    """Keep compiled programs in the user's cache folder, which is returned.

    Unless JAX was given another one, or none can be written, or JAX was imported before this package, on CPU: then XLA
    would say of every program that it loads what `subspace_adv/__init__.py` keeps it from.
    """
    if jax.default_backend() == "cpu" and int(os.environ.get("TF_CPP_MIN_LOG_LEVEL", "0")) < 3:
        return None
    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return None
    # Code for one processor may be unfit for another that shares the home folder.
    processor = hashlib.sha256(_processor(Path("/proc/cpuinfo")).encode()).hexdigest()[:8]
    folder = platformdirs.user_cache_path("subspace-adv") / f"compiled-{processor}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()  # what was compiled before has found that there is none
    return folder
