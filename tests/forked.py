"""Programs in processes of their own, forked from one that has loaded torch and the commands."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOADED = [
    "cli.train",
    "pipeline.rollout.play.validation",
    "policy.encoders.siglip2",
    "torch._dynamo",  # what the optimizers import
    "tests.frozen",
]
"""What the process to fork from loads; nothing of OpenGL, which does not survive a fork."""

ADDRESS = "TESTS_FORKSERVER"
"""Variable with the socket of the process that all processes of a suite fork from."""


def fork_simulators(*, for_workers: bool) -> None:
    """Fork also the processes that a rollout or a recording in this process starts.

    What they are forked from loads for seconds, and is one for all workers of a suite: with
    `for_workers`, their parent starts it before them. It lives as long as that.
    """
    contexts = multiprocessing.context._concrete_contexts
    contexts["spawn"] = contexts["forkserver"]
    server: Any = forkserver._forkserver
    if ADDRESS in os.environ:
        server._forkserver_address = os.environ[ADDRESS]
        server._forkserver_alive_fd = os.open(os.devnull, os.O_RDONLY)  # the parent holds the real
        server.ensure_running = resource_tracker.ensure_running
        return
    server.set_forkserver_preload(PRELOADED)
    if for_workers:
        server.ensure_running()
        os.environ[ADDRESS] = server._forkserver_address


def start(
    program: str, *words: object, output: Path, environment: Mapping[str, str] = os.environ
) -> BaseProcess:
    """Start what `python -c program words` starts, but seconds sooner.

    Args:
        program: its code.
        words: its arguments.
        output: file for its standard output and error.
        environment: its variables; torch obeys OMP_NUM_THREADS.
    """
    arguments = (program, [*map(str, words)], output, dict(environment))
    process = multiprocessing.get_context("forkserver").Process(target=_run, args=arguments)
    process.start()
    return process


def _run(program: str, words: list[str], output: Path, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    import torch  # it is slow, and not every process that imports this file needs it

    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", torch.get_num_threads())))
    with output.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a simulator's start may ignore it
    sys.argv = ["program", *words]
    exec(program, {"__name__": "__main__"})
