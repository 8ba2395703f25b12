"""The devices that JAX computes on, and how many networks suit them side by side."""

import platform
from pathlib import Path
from typing import NamedTuple

import jax

from subspace_adv.errors import UserError

_UNKNOWN_MEMORY = 2**33  # bytes, of a device that does not say
_MEMORY_SHARE = 1 / 4  # for networks in training, or measured: programs need as much again, and JAX keeps some back

# A step's activations (points × neurons × networks) should stay in a core's L2 cache, and so should the parameters of
# networks that have more of them, before and after the step.
_ACTIVATION_BYTES, _PARAMETER_BYTES = 2**18, 2**21
# An accelerator runs some 10⁵ threads at once, and pays for every operation's launch: each should be worth it.
_FILLING = 2**24
_MOST_LANES = 2**14


class Device(NamedTuple):
    """What a plan is made for."""

    platform: str  # "cpu", "gpu", "tpu"
    number: int = 1
    memory: int = 0  # bytes of each, read of accelerators

    @property
    def is_cpu(self) -> bool:
        """Whether cores, with their caches, do the work."""
        return self.platform == "cpu"


def local() -> Device:
    """The devices of this process.

    Raises:
        UserError: if JAX finds none, with its reason.
    """
    try:
        devices = jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # the second, of a platform whose library is missing
        raise UserError(_no_device(str(error))) from None
    memory = (devices[0].memory_stats() or {}).get("bytes_limit", _UNKNOWN_MEMORY)
    return Device(devices[0].platform, len(devices), memory)


def processor() -> str:
    """The name of this machine's processor, as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _no_device(reason: str) -> str:
    asked = jax.config.jax_platforms or ""  # pyright: ignore[reportAttributeAccessIssue]
    reason = reason.partition("\n")[0].partition(" (set JAX_PLATFORMS")[0] or "none of these could be started"
    return (
        f"JAX finds no device for JAX_PLATFORMS={asked}: {reason}; install what that platform needs "
        "(the extra cuda or tpu), run where there is one, or set JAX_PLATFORMS=cpu"
    )


def lanes_in_cache(activations: int, parameters: int) -> int:
    """Networks whose step runs in a core's cache; a power of two, 2 to 64.

    Args:
        activations: bytes of one network's, in one layer.
        parameters: bytes of those that a step reads and writes anew; 0 where they are few.
    """
    lanes = 4
    while lanes < 64 and 2 * lanes * activations <= _ACTIVATION_BYTES:
        lanes *= 2
    while lanes > 2 and 2 * lanes * parameters > _PARAMETER_BYTES:
        lanes //= 2
    return lanes


def filling(device: Device, work: int, size: int) -> int:
    """Networks that fill one accelerator, a power of two, but for what its memory holds.

    Args:
        device: the accelerator.
        work: elements that one network's largest operations have.
        size: bytes that one network takes.
    """
    enough = min(-(-_FILLING // work), _MOST_LANES)
    most = max(int(_MEMORY_SHARE * device.memory) // size, 1)
    return 1 << (min(1 << (enough - 1).bit_length(), most).bit_length() - 1)
