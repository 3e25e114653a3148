"""One call of training: open the store, begin or resume the run, train, report.

Knows stores, runs and the trainer; nothing about a step.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import RunError
from pipeline.features.store import FeatureStore
from pipeline.files import is_vacant, sole_writer
from pipeline.training.config import TrainConfig
from pipeline.training.run_folder import DataIdentity, RunDescription, read_run, write_run
from pipeline.training.trainer import Trainer
from pipeline.training.windows import WindowData
from policy.device import open_device


@dataclass(frozen=True)
class TrainReport:
    """What a finished training did."""

    run: Path
    steps: int
    resumed_from: int
    num_parameters: int
    heldout_error: float | None
    """Root mean squared action error on held-out episodes, normalised; None without."""
    elapsed_s: float

    def summary(self) -> str:
        """Say it in one line."""
        start = f", resumed at step {self.resumed_from}" if self.resumed_from else ""
        error = "" if self.heldout_error is None else f", held-out error {self.heldout_error:.4f}"
        return (
            f"{self.run}: {self.steps} steps{start} in {self.elapsed_s:.0f} s, "
            f"{self.num_parameters / 1e6:.1f} M parameters{error}"
        )


def train(
    store_path: Path, run: Path, config: TrainConfig, *, resume: bool, device: str = "cpu"
) -> TrainReport:
    """Train a policy on a complete feature store.

    Args:
        store_path: the store.
        run: folder of the run.
        config: everything that decides the weights.
        resume: go on with the run in `run` if there is one; otherwise one there is an error.
        device: torch's name of the device to train on.

    Raises:
        StoreError, IncompleteStoreError: the store cannot be used.
        RunError: `run` holds another run, or holds one and `resume` is False.
        NonFiniteLossError: the loss is not finite; checkpoints before it stay valid.
    """
    opened = open_device(device)
    store = FeatureStore.open(store_path)
    with store.unreplaced() as digest:
        store.check_digest()
        probe = store.read_probe()
        data = WindowData(store, heldout_share=config.heldout_share)
    description = RunDescription(
        config=config,
        spec=data.spec,
        data=DataIdentity(
            name=str(store.attributes.manifest["name"]),
            store_digest=digest,
            fps=store.attributes.fps,
            encoder=store.attributes.encoder,
            probe_digest=probe.digest(),
            manifest=store.attributes.manifest,
        ),
    )
    is_new = _is_new_run(run, description, resume=resume)
    trainer = Trainer(run, description, data, opened)
    if is_new:
        write_run(run, description, probe)
    with sole_writer(run, RunError):
        resumed_from = 0 if is_new else trainer.restore()
        started = time.monotonic()
        trainer.fit()
    return TrainReport(
        run=run,
        steps=config.steps,
        resumed_from=resumed_from,
        num_parameters=sum(parameter.numel() for parameter in trainer.agent.parameters()),
        heldout_error=trainer.heldout_error(),
        elapsed_s=time.monotonic() - started,
    )


def _is_new_run(run: Path, description: RunDescription, *, resume: bool) -> bool:
    """Say whether a run begins here, and refuse whatever else `run` may hold."""
    if not (run / "run.json").exists():
        if not is_vacant(run):
            raise RunError(f"{run}: holds something that is no training run; name another --out")
        return True
    if not resume:
        raise RunError(f"{run}: holds a run already; --resume goes on with it, or name another")
    held = read_run(run)
    for part in ("config", "spec", "data"):
        ours, theirs = (getattr(side, part).model_dump(mode="json") for side in (description, held))
        for field in ours:
            if ours[field] != theirs[field]:
                raise RunError(
                    f"{run}: was started with {part}.{field}={theirs[field]}, now it is "
                    f"{ours[field]}; a run resumes unchanged, so name another --out"
                )
    return False
