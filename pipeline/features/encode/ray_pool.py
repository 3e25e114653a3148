"""Many encoders in a Ray cluster, or in a Ray that is started on this machine for one run.

Each worker is an actor that loads the encoder once and is passed a few units at a time. Units are
idempotent and committed one by one, so that a lost actor costs only the units it had not committed:
they go to another actor. Actors end with the process that started them. Tested on one machine.
"""

import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from pipeline.errors import ConfigError, WorkerLostError
from pipeline.features.encode.frames import FrameSource
from pipeline.features.encode.known_frames import FrameIndex
from pipeline.features.encode.unit_encoder import UnitEncoder, UnitOutcome
from pipeline.features.identity.encoder import load_like, refuse_other_encoder
from pipeline.features.identity.probe import check_probe
from pipeline.features.identity.source import open_source
from pipeline.features.store.feature_store import FeatureStore
from pipeline.storage.location import Location
from policy.device import open_device
from policy.errors import first_line

logger = logging.getLogger(__name__)

ADDRESS: Final = "RAY_ADDRESS"  # Ray's own variable: host:port of the cluster's head
ANSWER_WITHIN_S: Final = 10.0  # seconds for a connection to Ray's head
UNITS_PER_CALL: Final = 8  # read ahead without a pause; fewer towards the end, for an even finish
LOSSES_ALLOWED: Final = 3  # of actors at one unit, or while they open, without a unit between


@dataclass(frozen=True)
class WorkerPlan:
    """The settings of every actor."""

    manifest: Path
    """Of the dataset, whose files the actor reads."""
    store: Location
    """With a probe that the actor's encoder must pass."""
    encoder: str | None
    """A local folder with the store's encoder; None: the store names it."""
    device: str
    """torch's name."""
    compiled: bool
    threads: int
    """torch's threads in each actor, which Ray reserves as CPUs."""
    index: FrameIndex
    """Frames whose features may be copied."""


class _Actor:
    def __init__(self, plan: WorkerPlan):
        self._plan = plan

    def open(self) -> None:
        self._encoder = open_encoder(self._plan)

    def encode(self, units: list[int]) -> Iterator[UnitOutcome]:
        torch.set_num_threads(self._plan.threads)  # OpenMP keeps the number by calling thread
        yield from self._encoder.encode(units)


def open_encoder(plan: WorkerPlan) -> UnitEncoder:
    """Open encoder, store and dataset (VlaError: one fails, or the probe differs here)."""
    torch.set_num_threads(plan.threads)
    store = FeatureStore.open(plan.store, allow_incomplete=True, writable=True)
    where = f"{store.path}, a worker"
    encoder = load_like(
        store.encoder,
        store.attributes.environment,
        store.read_bases(),
        name=plan.encoder,
        where=where,
        device=open_device(plan.device),
        compiled=plan.compiled,
    )
    refuse_other_encoder(encoder, store.encoder, where=where)
    check_probe(encoder, store.read_probe(), where=where)
    reader = open_source(store, plan.manifest)
    source = FrameSource(reader, store.read_episode_ends(), store.attributes.num_variants)
    return UnitEncoder(store, source, encoder, plan.index)


def encode_with_ray(
    plan: WorkerPlan, num_workers: int, units: Sequence[int]
) -> Generator[UnitOutcome]:
    """Encode units with actors, the next few with the first actor that is free.

    Yields:
        The outcome of each unit, in any order.

    Raises:
        ConfigError: Ray does not respond, or none of its machines is large enough.
        WorkerLostError: three actors were lost at the same unit, or before they encoded anything.
        VlaError, OSError: what an actor could not do, and no other could.
    """
    if not units:  # no actor need load an encoder
        return
    store = FeatureStore.open(plan.store, allow_incomplete=True)
    needs = {"CPU": float(plan.threads), "GPU": float(plan.device.startswith("cuda"))}
    waiting, lost_at = deque(units), Counter[int | None]()
    # The units that every actor was passed and has not finished; none while it opens.
    work: dict[Any, tuple[Any, list[int]]] = {}
    with _connected(needs):
        held = ray.put(plan)  # its index is kept once per machine, not per actor

        def start() -> None:
            actor_class = ray.remote(_Actor)
            options = {"num_cpus": needs["CPU"], "num_gpus": needs["GPU"], "max_restarts": 0}
            actor = actor_class.options(**options).remote(held)
            work[actor.open.remote()] = actor, []

        for _ in range(min(num_workers, len(units))):
            start()
        while work:
            [call], _ = ray.wait(list(work), num_returns=1)
            actor, left = work[call]
            try:
                outcome = _result(call)
            except RayTaskError as error:
                raise error.cause from None
            except RayError as error:
                del work[call]
                ray.kill(actor)  # one that is only out of reach must not write on
                # It may have committed a unit without having reported it.
                committed = store.valid_units(left)
                for unit in committed:
                    yield UnitOutcome(unit)
                lost = [unit for unit in left if unit not in committed]
                waiting.extendleft(reversed(lost))
                lost_at[lost[0] if lost else None] += 1  # the others were hardly begun
                _refuse_more_losses(lost_at, first_line(error))
                logger.warning("a worker was lost (%s); starting a new one", error)
                start()
                continue
            if outcome is not None:
                left.remove(outcome.unit)
                lost_at.pop(None, None)
                yield outcome
                continue
            del work[call]
            several = max(1, min(UNITS_PER_CALL, len(waiting) // (2 * num_workers)))
            if taken := [waiting.popleft() for _ in range(min(several, len(waiting)))]:
                work[actor.encode.remote(taken)] = actor, taken


def _result(call: Any) -> UnitOutcome | None:
    """Return the next outcome of an actor; None if it has opened, or finished its units."""
    outcome: UnitOutcome | None = None
    if isinstance(call, ray.ObjectRef):
        ray.get(call)
    else:
        with suppress(StopIteration):
            outcome = ray.get(next(call))
    return outcome


def _refuse_more_losses(lost_at: Counter[int | None], reason: str) -> None:
    [(unit, losses)] = lost_at.most_common(1)
    if losses >= LOSSES_ALLOWED:
        where = "before they encoded anything" if unit is None else f"at unit {unit}"
        raise WorkerLostError(
            f"{losses} workers were lost {where}, the last one: {reason}; committed units are "
            "kept; check the memory and that unit's files, then run the same command again"
        )


@contextmanager
def _connected(needs: dict[str, float]) -> Iterator[None]:
    address = os.environ.get(ADDRESS)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no user agreed to send anything
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        options |= {"address": "local", "include_dashboard": False}
    else:
        _require_answer(address)
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        if address is None:
            raise
        raise _no_ray(address, error) from error
    try:
        _check_resources(needs)
        yield
    finally:
        ray.shutdown()  # ends its actors


def _check_resources(needs: dict[str, float]) -> None:
    held = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(kind, 0) >= n for kind, n in needs.items()) for node in held):
        return
    best = {kind: max((node.get(kind, 0) for node in held), default=0) for kind in needs}
    raise ConfigError(
        f"a worker needs {needs['CPU']:g} CPUs and {needs['GPU']:g} GPUs, but no node of this Ray "
        f"cluster has that many (at most {best['CPU']:g} and {best['GPU']:g}); set OMP_NUM_THREADS "
        "to the CPUs per worker"
    )


def _require_answer(address: str) -> None:
    """Find out in seconds whether a Ray listens at an address; Ray itself tries for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or "/" in host or not port.isdecimal():
        raise ConfigError(f"{ADDRESS}: expected host:port of the Ray head node, found {address}")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_WITHIN_S).close()
    except (OSError, OverflowError) as error:
        raise _no_ray(address, error) from error


def _no_ray(address: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"{ADDRESS}={address}: cannot connect to Ray ({first_line(error)}); use host:port of a "
        f"running head node, and the same Ray version and token as there"
    )
