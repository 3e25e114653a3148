"""Which executor encodes a store's units, and with what for each worker."""

import importlib.util

import torch
from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import ConfigError
from pipeline.features.encode.executors import ExecutorName, WorkerPool
from pipeline.features.encode.worker import WorkerPlan
from policy.errors import MissingExtraError


class ExecutorConfig(BaseModel):
    """Who encodes: this process, processes of this machine, or actors of a Ray cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ExecutorName = "in-process"
    """Where the encoder runs."""
    workers: int = Field(default=1, ge=1)
    """Processes or actors, each with a tower of its own."""
    cpus_per_worker: int | None = Field(default=None, ge=1)
    """torch's threads in each, which Ray keeps free for it; None shares out this process's."""
    gpus_per_worker: float | None = Field(default=None, ge=0)
    """GPUs that Ray keeps free for each, or the share of one; None is one where the device is."""
    address: str | None = None
    """Of a Ray cluster, or `auto`; None starts Ray here, for this run alone."""

    @property
    def is_remote(self) -> bool:
        """Whether other processes encode."""
        return self.name != "in-process"

    def check(self) -> None:
        """Find out, before anything is read, whether these settings go together.

        Raises:
            ConfigError: a setting is of another executor.
            MissingExtraError: Ray is asked for and not installed.
        """
        if not self.is_remote and (self.workers, self.cpus_per_worker) != (1, None):
            raise ConfigError(
                "--workers and --cpus-per-worker need --executor processes or --executor ray; "
                "in-process there is one worker, with the threads that torch has"
            )
        if self.name != "ray" and (self.address, self.gpus_per_worker) != (None, None):
            raise ConfigError("--address and --gpus-per-worker need --executor ray")
        if self.name == "ray" and importlib.util.find_spec("ray") is None:
            raise MissingExtraError(
                "--executor ray: Ray is not installed; run `pip install frozen-vla[ray]`"
            )

    def threads(self) -> int:
        """Return the threads of torch in each worker."""
        return self.cpus_per_worker or max(1, torch.get_num_threads() // self.workers)

    def open_pool(self, plan: WorkerPlan) -> WorkerPool:
        """Return workers that are not started yet."""
        if self.name == "ray":
            from pipeline.features.encode.ray_pool import RayPool  # noqa: PLC0415  an extra

            gpus = float(plan.device.startswith("cuda"))
            given = self.gpus_per_worker
            return RayPool(
                plan, address=self.address, gpus_per_worker=gpus if given is None else given
            )
        from pipeline.features.encode.process_pool import ProcessPool  # noqa: PLC0415  its workers import us

        return ProcessPool(plan)
