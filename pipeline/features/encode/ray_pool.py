"""Workers as actors of a Ray cluster, or of a Ray that is started on this machine alone.

Knows Ray Core: one actor a worker, which loads the tower once; nothing is restarted or tried again
behind our back. Actors end with the process that started them. Several machines are untested.
"""

import logging
import os
import socket
from collections.abc import Sequence
from typing import Any, Final

import ray
from ray._private.services import canonicalize_bootstrap_address
from ray.exceptions import RayError, RayTaskError

from pipeline.errors import ConfigError
from pipeline.features.encode.executors import Encoded, Lost, Ready
from pipeline.features.encode.unit_encoder import UnitOutcome
from pipeline.features.encode.worker import UNITS_IN_FLIGHT, UnitWorker, WorkerPlan

ANSWER_WITHIN_S: Final = 10.0  # seconds for a connection to Ray's head


class RayPool:
    """Actors and the calls that they work on; implements `WorkerPool`."""

    def __init__(self, plan: WorkerPlan, *, address: str | None, gpus_per_worker: float):
        """Prepare; nothing is started yet.

        Args:
            plan: of every worker; each takes as many CPUs as it has threads.
            address: `host:port` of a running cluster, or `auto`; None starts Ray here, for this
                run alone.
            gpus_per_worker: of each, or the share of one.
        """
        self._plan = plan
        self._address = address
        self._needs = {"CPU": float(plan.threads), "GPU": gpus_per_worker}
        self._actors: dict[int, Any] = {}
        self._calls: dict[Any, int] = {}  # which worker works on it

    def __enter__(self) -> "RayPool":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody agreed to send anything
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if self._address is None:
            options |= {"address": "local", "include_dashboard": False}
        else:
            options |= {"address": _require_answer(self._address)}
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            if self._address is None:
                raise
            raise _no_ray(self._address, error) from error
        try:
            self._check_resources()
        except ConfigError:
            ray.shutdown()
            raise
        self._plan_held = ray.put(self._plan)  # its frames are kept once a machine, not an actor
        return self

    def __exit__(self, *error: object) -> None:
        for actor in self._actors.values():
            ray.kill(actor)
        ray.shutdown()

    def start(self, worker: int) -> None:
        """Start a worker; see `WorkerPool.start`."""
        actor = (
            ray.remote(_Actor)
            .options(
                num_cpus=self._needs["CPU"],
                num_gpus=self._needs["GPU"],
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=UNITS_IN_FLIGHT,
            )
            .remote(self._plan_held)
        )
        self._actors[worker] = actor
        self._calls[actor.open.remote()] = worker

    def send(self, worker: int, unit: int) -> None:
        """Hand over a unit; see `WorkerPool.send`."""
        self._calls[self._actors[worker].encode_unit.remote(unit)] = worker

    def wait(self) -> Sequence[Ready | Encoded | Lost]:
        """Wait until something happens; see `WorkerPool.wait`.

        Raises:
            VlaError, OSError: what a worker could not do.
        """
        [call], _ = ray.wait(list(self._calls), num_returns=1)
        worker = self._calls.pop(call)
        try:
            outcome = ray.get(call)
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            self._calls = {call: held for call, held in self._calls.items() if held != worker}
            ray.kill(self._actors.pop(worker))  # one that is only out of reach must not write on
            return [Lost(worker, _first_line(error))]
        return [Ready(worker) if outcome is None else Encoded(worker, outcome)]

    def _check_resources(self) -> None:
        held = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(all(node.get(kind, 0) >= n for kind, n in self._needs.items()) for node in held):
            return
        best = {kind: max((node.get(kind, 0) for node in held), default=0) for kind in self._needs}
        raise ConfigError(
            f"a worker needs {self._needs['CPU']:g} CPUs and {self._needs['GPU']:g} GPUs, no "
            f"machine of this Ray has as many (the most: {best['CPU']:g} and {best['GPU']:g}); set "
            f"--cpus-per-worker and --gpus-per-worker"
        )


class _Actor:
    def __init__(self, plan: WorkerPlan):
        self._plan = plan

    def open(self) -> None:
        self._worker = UnitWorker(self._plan)

    def encode_unit(self, unit: int) -> UnitOutcome:
        return self._worker.encode_unit(unit)


def _require_answer(address: str) -> str:
    """Find out in seconds whether a Ray listens there, and return where; Ray tries for minutes.

    For `auto` too: Ray takes the last cluster of this machine, which may have ended since.
    """
    try:
        found = canonicalize_bootstrap_address(address) if address == "auto" else address
        host, colon, port = str(found).rpartition(":")
        if not colon or "/" in host or not port.isdecimal():
            raise ConfigError(f"--address {found}: want host:port of Ray's head, or `auto`")
        socket.create_connection((host, int(port)), timeout=ANSWER_WITHIN_S).close()
    except (OSError, OverflowError) as error:
        raise _no_ray(address, error) from error
    return str(found)


def _no_ray(address: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"--address {address}: no Ray answers there ({_first_line(error)}); want host:port of a "
        f"running head, or `auto` on one of its machines, and the same Ray and token here"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
