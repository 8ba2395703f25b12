"""Files and folders of results, each written whole or not at all."""

import errno
import fnmatch
import hashlib
import os
import shutil
import tempfile
import uuid
from pathlib import Path

PARTIAL, TEMPORARY = ".partial", ".tmp"
"""How the names of folders and of files end until they are whole."""
REMEDIES = {
    os.strerror(number): remedy
    for remedy, numbers in {
        "make room": (errno.ENOSPC, errno.EDQUOT),
        "permit writing there": (errno.EACCES, errno.EPERM, errno.EROFS),
        "put the folder back in its place": (errno.ENOENT, errno.ESTALE),
    }.items()
    for number in numbers
}
"""What to do where the system refuses to write, by what it says."""
# What systems leave in folders that they show, sync or mount.
_DROPPED = ("._*", ".ds_store", ".directory", ".fuse_hidden*", ".nfs*", "desktop.ini", "lost+found", "thumbs.db")
_BLOCK = bytes(2**20)


def unique(path: Path, ending: str) -> Path:
    """A name beside a path that no other writer has."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}{ending}")


def write(path: Path, text: str) -> None:
    """Give a file this content, whole or not at all."""
    _beside(path, text).replace(path)


def write_first(path: Path, text: str) -> bool:
    """As `write`, unless there is such a file already; whether there was none."""
    temporary = _beside(path, text)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        if path.exists():
            return False
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _beside(path: Path, text: str) -> Path:
    """A file of this content under a name of its own, safely on the disk."""
    temporary = unique(path, TEMPORARY)
    with temporary.open("wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    return temporary


def moved(partial: Path, path: Path) -> bool:
    """Give a whole folder its name, unless another one has it."""
    try:
        partial.rename(path)
    except OSError:
        if not path.exists():
            raise
        return not partial.exists()  # it may have been moved though the answer was lost, as on NFS
    return True


def remove(path: Path) -> None:
    """Remove a file, or a folder and all that is in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_dropped(name: str) -> bool:
    """Whether a file of this name is one that systems leave."""
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in _DROPPED)


def names_in(folder: Path) -> list[str]:
    """Files of a folder and of those within."""
    files = (path for path in folder.rglob("*") if path.is_file() and not is_dropped(path.name))
    return sorted(path.relative_to(folder).as_posix() for path in files)


def digest_of(folder: Path, names: list[str]) -> str:
    """Of the names and contents of files of a folder."""
    digest = hashlib.sha256()
    for name in names:
        with (folder / name).open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()


def make_sure_of_room(folder: Path, size: int) -> None:
    """Let the system refuse now: a save that fails midway floods stderr from threads of the storage library."""
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(0, size + len(_BLOCK), len(_BLOCK)):  # one more for what a chunk takes beside its arrays
            file.write(_BLOCK)
        file.flush()


def reason_of(error: BaseException) -> str:
    """What the operating system said, from an exception or its causes; else the exception's first line."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return next((known for known in REMEDIES if known in str(error)), (str(error) or repr(error)).splitlines()[0])
