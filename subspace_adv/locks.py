"""Keeps processes that write to one folder apart, where its file system can."""

import errno
import warnings
from pathlib import Path
from typing import IO, NamedTuple

import portalocker

from subspace_adv.errors import UserError

LOCK = ".lock"
"""Name of the file that is locked, in the folder."""
_LOCKLESS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # what a file system without locks says


class InUse(UserError):
    """Another process writes to the folder."""


class Lock(NamedTuple):
    """A folder that this process may write to, until it is closed."""

    file: IO[str]
    keeps_out: bool  # whether it is known that others may not

    def share(self) -> None:
        """Let others write too that share."""
        if self.keeps_out:
            portalocker.lock(self.file, portalocker.LockFlags.SHARED | portalocker.LockFlags.NON_BLOCKING)

    def close(self) -> None:
        """Let others write."""
        self.file.close()


def locked(folder: Path, *, shared: bool) -> Lock:
    """Keep other processes from writing to a folder, but where `shared` for those that share it.

    Warns:
        Where the file system has no locks, so that nothing keeps two whole runs apart.

    Raises:
        InUse: if another process writes there.
        OSError: if the folder cannot be written.
    """
    file = (folder / LOCK).open("a+")
    flags = portalocker.LockFlags.SHARED if shared else portalocker.LockFlags.EXCLUSIVE
    try:
        portalocker.lock(file, flags | portalocker.LockFlags.NON_BLOCKING)
    except portalocker.AlreadyLocked:
        file.close()
        raise InUse(f"{folder}: another run is writing here; wait for it, or choose another --out") from None
    except portalocker.LockException as error:
        if not (isinstance(error.__cause__, OSError) and error.__cause__.errno in _LOCKLESS):
            file.close()
            raise error.__cause__ or error from None
        told = "its file system has no locks; see to it yourself that no other whole run writes here"
        warnings.warn(f"{folder}: {told}", stacklevel=2)
        return Lock(file, keeps_out=False)
    return Lock(file, keeps_out=not shared)
