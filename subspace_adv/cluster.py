"""Ray as an executor: workers of this machine, or of a cluster that is there. The only place that knows Ray.

Ray is an extra, and takes seconds to import: it is imported when it is needed.
"""

import logging
import os
import re
import secrets
import signal
import socket
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, NamedTuple

from subspace_adv.driver import Cluster
from subspace_adv.errors import UserError, brief
from subspace_adv.process import cores

_RETRIES = 3  # of a task whose worker or machine dies
_CONNECTING_SECONDS = 5.0
_QUIET = {"log_to_driver": False, "logging_level": logging.ERROR}
_SETTINGS = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` each worker would build an environment of its own
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # which Ray would speak of
    "RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S": "8",  # of the second and third time that it tries
}
_PASSED_ON = ("JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR")  # from here to workers elsewhere


@contextmanager
def connected(address: str) -> Iterator["RayCluster"]:
    """Ray's workers, for as long as the context lasts.

    Args:
        address: "ray" for workers on this machine, started here; "ray://host:port" for those of a cluster.

    Raises:
        UserError: if Ray is not installed, or there is no such cluster.
    """
    told = re.fullmatch(r"ray(?:://(?P<host>[^/:]+|\[[^/\]]+\]):(?P<port>\d{1,5}))?", address)
    if not told:
        raise UserError(f"command line: --cluster: {brief(address)}: must be ray, or ray://host:port of a cluster")
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if not told["host"]:
        _with_token()
    ending = signal.getsignal(signal.SIGTERM)  # which Ray would handle itself
    ray = _ray()
    try:
        if told["host"]:
            _connect(ray, address, told["host"].strip("[]"), int(told["port"]))
        else:
            ray.init("local", num_cpus=cores(), include_dashboard=False, **_QUIET)
        signal.signal(signal.SIGTERM, ending)
        with RayCluster(ray, elsewhere=bool(told["host"])) as workers:
            yield workers
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, ending)


def _with_token() -> None:
    """Let nobody else hand tasks to the workers that are started here: their ports are open to the network."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        told = f"{error}; install the extra cluster, as by pip install 'subspace-adv[cluster]'"
        raise UserError(f"command line: --cluster: Ray cannot be imported: {told}") from None
    return ray


def _connect(ray: Any, address: str, host: str, port: int) -> None:
    """Connect to a cluster that is there, or tell in one line why that cannot be."""
    try:
        socket.create_connection((host, port), _CONNECTING_SECONDS).close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is raised as well
            ray.init(address, **_QUIET)
    except (OSError, OverflowError, RuntimeError, ray.exceptions.RayError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
        if "Traceback" in reason:  # of the cluster, which was too slow or is too busy to serve one more
            reason = f"{reason.rpartition('Error: ')[2].rstrip('.')}; try again"
        if "timeout" in reason:
            reason += "; give the port of its client server, 10001 by default, and its token in RAY_AUTH_TOKEN"
        if "ersion mismatch" in reason:
            reason = f"its Ray or its Python is of another version: {reason}"
        raise UserError(f"command line: --cluster: {address}: cannot be reached: {reason}") from None


class _Task(NamedTuple):
    """A task that is under way."""

    future: Future
    call: Callable[[dict[str, Any]], Any]  # begins it, with options, and returns its reference
    cores: int  # that a machine must have


class RayCluster(Cluster):
    """Tasks of Ray: one at a time for each GPU or TPU where the cluster has any, else for each machine, on all cores.

    Machines of many cores run several tasks at a time, each on as many cores as the smallest machine has.
    """

    def __init__(self, ray: Any, *, elsewhere: bool) -> None:
        """Of the cluster that Ray is connected to; whether it is not of this machine."""
        self._ray = ray
        self._environment = {name: os.environ[name] for name in _PASSED_ON if elsewhere and name in os.environ}
        self._under_way: dict[Any, _Task] = {}  # by Ray's reference of their result

    def slots(self) -> int:
        """Tasks that machines which are there now can run at a time; those that none can run are begun anew."""
        machines = self._machines()
        largest = max((machine.get("CPU", 0) for machine in machines), default=0)
        for reference, task in list(self._under_way.items()) if largest else ():
            if task.cores > largest and self._under_way.pop(reference, None):
                self._ray.cancel(reference, force=True)
                self._begin(task.future, task.call)
        kind, amount = self._share(machines)
        return sum(int(machine.get(kind, 0) // amount) for machine in machines)

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future:
        """Begin a task; it runs again where its worker or machine dies."""
        future = Future()
        self._begin(future, lambda options: self._ray.remote(**options)(fn).remote(*arguments, **named))
        return future

    def _begin(self, future: Future, call: Callable[[dict[str, Any]], Any]) -> None:
        kind, amount = self._share(self._machines())
        needs = {"CPU": {"num_cpus": amount}, "GPU": {"num_cpus": 0, "num_gpus": 1}}
        environment = self._environment | ({"NPROC": str(amount)} if kind == "CPU" else {})
        options = {
            **needs.get(kind, {"num_cpus": 0, "resources": {kind: 1}}),
            "max_calls": 0,  # a worker keeps what it has compiled
            "max_retries": _RETRIES,
            "runtime_env": {"env_vars": environment},
        }
        reference = call(options)
        self._under_way[reference] = _Task(future, call, amount if kind == "CPU" else 0)

        def end(found: Future) -> None:
            if not self._under_way.pop(reference, None) or not future.set_running_or_notify_cancel():
                return
            if error := found.exception():
                future.set_exception(self._in_words(error))
            else:
                future.set_result(found.result())

        reference.future().add_done_callback(end)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Stop all tasks that are under way."""
        for reference in list(self._under_way):
            self._ray.cancel(reference, force=True)

    def _machines(self) -> list[dict[str, float]]:
        """What each machine that is there has of each resource."""
        return [machine["Resources"] for machine in self._ray.nodes() if machine["Alive"]]

    def _share(self, machines: list[dict[str, float]]) -> tuple[str, int]:
        """What a task takes of machines: a kind of resource, and how much of it."""
        accelerated = () if os.environ.get("JAX_PLATFORMS") == "cpu" else ("TPU", "GPU")
        for kind in accelerated:
            if any(machine.get(kind) for machine in machines):
                return kind, 1
        return "CPU", min((int(machine["CPU"]) for machine in machines if machine.get("CPU", 0) >= 1), default=1)

    def _in_words(self, error: Any) -> BaseException:
        """A task's mistake as it was raised, and in one line what befell its worker; other errors as Ray tells them."""
        if isinstance(error, self._ray.exceptions.RayTaskError):
            missing = "No module named 'subspace_adv'" in str(error)
            told = f"workers have no subspace-adv; install {version('subspace-adv')} on all machines"
            return UserError(told) if missing else error.cause if isinstance(error.cause, UserError) else error
        if isinstance(error, self._ray.exceptions.RayError | ConnectionError):
            return BrokenExecutor(" ".join(str(error).split()))
        return error
