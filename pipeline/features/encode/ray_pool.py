"""Many encoders in a Ray cluster, or in a Ray that is started on this machine for one run.

Each worker is an actor that loads the encoder once and is passed a few units at a time. Units are
idempotent and committed one by one, so that a lost actor costs only the units it had not committed:
they go to another actor. Actors end with the process that started them. Tested on one machine.
"""

import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from pipeline.errors import ConfigError, WorkerLostError
from pipeline.features.encode.config import EmbedConfig
from pipeline.features.encode.frames import FrameSource
from pipeline.features.encode.known_frames import FrameIndex
from pipeline.features.encode.unit_encoder import UnitEncoder, UnitOutcome
from pipeline.features.identity.encoder import load_like
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


class _Actor:
    def __init__(self, threads: int, open_encoder: Callable[[], UnitEncoder]):
        self._threads = threads
        self._open_encoder = open_encoder

    def open(self) -> None:
        torch.set_num_threads(self._threads)
        self._encoder = self._open_encoder()

    def encode(self, units: list[int]) -> Iterator[UnitOutcome]:
        torch.set_num_threads(self._threads)  # OpenMP keeps the number by calling thread
        yield from self._encoder.encode(units)


def _open_encoder(
    config: EmbedConfig, path: Location, device: str, index: FrameIndex
) -> UnitEncoder:
    """Open encoder, store and dataset in an actor; the encoder must pass the store's probe."""
    store = FeatureStore.open(path, allow_incomplete=True, writable=True)
    where = f"{path}, a worker"
    encoder = load_like(
        store.encoder,
        store.attributes.environment,
        store.read_bases(),
        name=config.encoder if Path(config.encoder).is_absolute() else None,
        where=where,
        device=open_device(device),
        compiled=config.compiled,
    )
    check_probe(encoder, store.read_probe(), where=where)
    reader = open_source(store, config.manifest)
    source = FrameSource(reader, store.read_episode_ends(), store.attributes.num_variants)
    return UnitEncoder(store, source, encoder, index)


def encode_with_ray(
    config: EmbedConfig,
    path: Location,
    device: torch.device,
    units: Sequence[int],
    index: FrameIndex,
) -> Generator[UnitOutcome]:
    """Encode units of the store at `path` with actors, the next few with the first that is free.

    `index` has frames whose features may be copied.

    Yields:
        The outcome of each unit, in any order.

    Raises:
        ConfigError: Ray does not respond, or none of its machines is large enough.
        WorkerLostError: three actors were lost at the same unit, or before they encoded anything.
        VlaError, OSError: what an actor could not do, and no other could.
    """
    if not units:  # no actor need load an encoder
        return
    num_workers, threads = config.ray_workers or 1, torch.get_num_threads()
    needs = {"CPU": float(threads), "GPU": float(device.type == "cuda")}
    # Actors have another working directory.
    absolute: dict[str, object] = {"manifest": config.manifest.absolute()}
    if Path(config.encoder).is_dir():
        absolute["encoder"] = str(Path(config.encoder).absolute())
    config = config.model_copy(update=absolute)
    store = FeatureStore.open(path, allow_incomplete=True)
    waiting, lost_at = deque(units), Counter[int | None]()
    # The units that every actor was passed and has not finished; none while it opens.
    work: dict[Any, tuple[Any, list[int]]] = {}
    with _connected(needs):
        # Kept once per machine, not per actor: the index is large.
        opening = ray.put(partial(_open_encoder, config, path, str(device), index))

        def start() -> None:
            actor_class = ray.remote(_Actor)
            options = {"num_cpus": needs["CPU"], "num_gpus": needs["GPU"], "max_restarts": 0}
            actor = actor_class.options(**options).remote(threads, opening)
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
    try:
        if address is not None:  # find out in seconds whether it responds: Ray tries for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=ANSWER_WITHIN_S).close()
        ray.init(**options)
    except (OSError, OverflowError, RuntimeError, ValueError, RayError) as error:
        if address is None:
            raise
        raise ConfigError(
            f"{ADDRESS}={address}: cannot connect to Ray ({first_line(error)}): expected host:port "
            f"of a running head node, with the same Ray version and token as here"
        ) from error
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
