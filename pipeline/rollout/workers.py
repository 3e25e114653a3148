"""The recorder's processes: one simulator each, a seed at a time, deaf to Ctrl-C.

Knows environments by their protocol and episodes by `write_episode`; which seeds to record is the
recorder's decision.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from pipeline.datasets.aloha_recording import RecordedEpisode, write_episode
from pipeline.errors import DatasetError, EnvError
from pipeline.rollout.envs.registry import ExpertEnv, make_expert_env
from policy.errors import VlaError


@dataclass(frozen=True, eq=False)
class Worker:
    """One recording process, seen from the recorder."""

    process: BaseProcess
    """Ends when its connection closes."""
    connection: Connection
    """Takes seeds and gives answers; ready when a seed is done or the process has ended."""

    def begin(self, seed: int) -> None:
        """Hand a seed to the process; `finish` tells how it went."""
        with suppress(OSError):  # a worker that has ended left its reason for `finish`
            self.connection.send(seed)

    def finish(self) -> int | None:
        """Wait for the seed in hand; return its steps, or None if the expert does not solve it.

        Raises:
            VlaError: what the process raised, or that it ended by itself.
        """
        try:
            answer: int | VlaError | None = self.connection.recv()
        except (EOFError, OSError) as error:
            self.process.join(timeout=5)
            raise EnvError(
                f"recording worker: expected an episode, found that the process ended with code "
                f"{self.process.exitcode}; -9 means out of memory: use fewer workers. The same "
                "call goes on where this one stopped"
            ) from error
        if isinstance(answer, VlaError):
            raise answer
        return answer


@contextmanager
def crew(env: str, views: tuple[str, ...], out: Path, num_workers: int) -> Iterator[list[Worker]]:
    """Start worker processes; end them at once if the block is left by an error or Ctrl-C.

    Args:
        env: what `make_expert_env` takes.
        views: cameras, in order.
        out: folder of the recordings; temporary files in it are removed at the end.
        num_workers: processes.
    """
    spawn = multiprocessing.get_context("spawn")  # OpenGL does not survive a fork
    workers: list[Worker] = []
    try:
        with _ctrl_c_ignored():
            for _ in range(num_workers):
                ours, theirs = spawn.Pipe()
                process = spawn.Process(target=_work, args=(env, views, out, theirs), daemon=True)
                process.start()
                theirs.close()  # so that the end of the worker is the end of the pipe
                workers.append(Worker(process, ours))
        yield [*workers]
    except BaseException:
        for worker in workers:
            worker.process.terminate()
        raise
    finally:
        for worker in workers:
            worker.connection.close()  # an idle worker reads the end of the pipe, and returns
            worker.process.join()
        for partial in out.glob(".*.partial"):
            partial.unlink()


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """Start children deaf to Ctrl-C: this process ends them, and they print no traceback."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set a handler, and only it gets Ctrl-C
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _work(env_name: str, views: tuple[str, ...], out: Path, connection: Connection) -> None:
    """Record the seeds that arrive, until the pipe closes; runs in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Mesa's software renderer starts a thread a core in each process; set before OpenGL loads.
    os.environ["LP_NUM_THREADS"] = "1"
    with suppress(EOFError, ConnectionError):  # the recording process has ended or is done
        try:
            env = make_expert_env(env_name, views)
            try:
                while True:
                    seed = connection.recv()
                    connection.send(_record_seed(env, seed, out))
            finally:
                env.close()
        except ConnectionError:
            raise
        except VlaError as error:
            connection.send(error)
        except OSError as error:
            connection.send(
                DatasetError(
                    f"{out}: expected to write a recording, found {error}; make room or "
                    "choose another folder, and repeat the call"
                )
            )


def _record_seed(env: ExpertEnv, seed: int, out: Path) -> int | None:
    """Record one seed; return its steps, or None if the expert does not solve it."""
    # Physics takes 1 ms a step and rendering 36 ms: look first whether there is anything to render.
    length = _steps_to_success(env, seed)
    if length is None:
        return None
    env.reset(seed)
    frames, states, actions, is_solved = [], [], [], False
    for _ in range(length):
        frames.append(env.render())
        states.append(env.state())
        actions.append(env.expert_action())
        is_solved = env.step(actions[-1]).success
    if not is_solved:
        raise EnvError(
            f"{env.name}: expected seed {seed} to be solved at step {length} twice, found that the "
            "same seed gave another episode; report this, the simulator is not deterministic here"
        )
    episode = RecordedEpisode(
        frames={
            view: np.stack([shot[index] for shot in frames])
            for index, view in enumerate(env.view_names)
        },
        state=np.stack(states),
        action=np.stack(actions),
        env=env.name,
        seed=seed,
        fps=env.control_hz,
    )
    write_episode(out / f"episode_{seed}.hdf5", episode)
    return length


def _steps_to_success(env: ExpertEnv, seed: int) -> int | None:
    env.reset(seed)
    for step in range(1, env.max_steps + 1):
        if env.step(env.expert_action()).success:
            return step
    return None
