"""How far do environments differ, in features and in a policy's actions? A table in Markdown.

    python -m tests.bench.tolerance STORE [--run RUN] [--encoder PATH] [--compiled]

Encodes the real frames of the store's probe in every way that this machine has.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.errors import RunError, StoreError
from pipeline.features.identity.verify import Distances
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.steps import StepArrays
from pipeline.storage.location import Location, parse_location
from pipeline.training.data.sampling import seeded_generator
from pipeline.training.run.checkpoint import read_average
from pipeline.training.run.folder import read_run
from policy.agent import VLAAgent
from tests.bench.engines import EngineComparison, Features, Variant

NUM_STATES: Final = 16  # robot states that every frame is paired with, spread over the store
ACTION_SEED: Final = 0


@dataclass(frozen=True)
class ActionDistances:
    """How far the actions of a policy move when its features do."""

    max_abs: float
    """In the manifest's units."""
    share_of_spread: float
    """Largest difference of an action over that action's standard deviation in the store."""


@dataclass(frozen=True)
class ToleranceRow:
    """One way of computing features against the usual one."""

    name: str
    features: Distances | None
    """None where this machine cannot compute them."""
    actions: ActionDistances | None
    """None without a policy."""
    reason: str


@dataclass(frozen=True)
class ToleranceReport:
    """How far environments differ."""

    encoder: str
    feature: str
    environment: str
    tolerance: float
    num_images: int
    has_actions: bool
    rows: tuple[ToleranceRow, ...]

    def table(self) -> str:
        """Return the table in Markdown, with a line that says what was measured."""
        heads = ["against this machine", "max abs", "relative L2", "equal float16"]
        heads += ["action, max abs", "action / its spread"] * self.has_actions
        lines = [
            f"{self.encoder} on {self.environment}, feature `{self.feature}`; the worst of "
            f"{self.num_images} real images; the probe allows a relative L2 of "
            f"{self.tolerance:.0e} between environments.",
            "",
            f"| {' | '.join(heads)} |",
            f"|{'---|' * len(heads)}",
        ]
        lines += [f"| {' | '.join(_cells(row, len(heads)))} |" for row in self.rows]
        return "\n".join(lines)


def measure_tolerance(
    store_path: Location,
    run: Path | None,
    *,
    encoder: str | None = None,
    feature: str | None = None,
    compiled: bool = False,
) -> ToleranceReport:
    """Measure how far environments differ on the real frames of a store's probe.

    Args:
        store_path: the store.
        run: a policy trained on features of the same encoder; None measures features alone.
        encoder: where the encoder lies now; None takes the name in the store.
        feature: which one is compared; None is the store's first. A policy sees all it reads.
        compiled: also measure torch.compile, which takes up to minutes.

    Raises:
        StoreError: there is no store, or its probe holds no real frame.
        RunError: `run` has no checkpoint, or was trained on features of another encoder.
        EncoderLoadError, EncoderMismatchError: the encoder cannot be loaded.
    """
    store = FeatureStore.open(store_path, allow_incomplete=True)
    made_by, probe, steps = store.encoder, store.read_probe(), store.read_steps()
    feature = feature or made_by.feature_names[0]
    if not len(probe.real_frames):
        raise StoreError(f"{store_path}: its probe holds no real frame; embed a dataset into it")
    policy = None if run is None else _Policy(run, store, steps)
    comparison = EngineComparison(store, name=encoder)
    reference = comparison.reference
    rows = tuple(
        _compare(variant, reference, feature, policy)
        for variant in comparison.variants(compiled=compiled)
    )
    here = comparison.encoder.environment
    return ToleranceReport(
        encoder=f"{made_by.name}, {made_by.compute_dtype}",
        feature=feature,
        environment=f"{here.device}, torch {here.torch_version}, {here.threads} threads",
        tolerance=probe.tolerance,
        num_images=comparison.frames.shape[0] * comparison.frames.shape[1],
        has_actions=policy is not None,
        rows=rows,
    )


class _Policy:
    """A trained policy that acts on the same noise and states whatever the features."""

    def __init__(self, run: Path, store: FeatureStore, steps: StepArrays) -> None:
        description = read_run(run)
        theirs = description.data.encoder
        reads = [name for name in theirs.feature_names if name in store.encoder.feature_names]
        ours = store.encoder.only(reads)
        if (ours.fingerprint, store.attributes.view_names) != (
            theirs.fingerprint,
            description.spec.view_names,
        ):
            raise RunError(
                f"{run}: was trained on features of {theirs.name} ({theirs.fingerprint[:12]}), "
                f"views {', '.join(description.spec.view_names)}; {store.path} holds those of "
                f"{ours.name} ({ours.fingerprint[:12]}), {', '.join(store.attributes.view_names)}"
            )
        self._agent = VLAAgent(description.config.agent, description.spec)
        self._agent.load_state_dict(read_average(run)[1], strict=True)
        self._agent.eval()
        rows = np.linspace(0, len(steps.state) - 1, NUM_STATES).round().astype(np.int64)
        self._states = torch.from_numpy(steps.state[rows])
        self.spread = steps.action.astype(np.float64).std(axis=0)

    def act(self, features: Features) -> Float[Tensor, "b horizon a"]:
        """Predict from every frame in every state, the robot standing still before it."""
        horizon = self._agent.config.obs_horizon
        shown = {
            name: torch.from_numpy(values).float().repeat_interleave(NUM_STATES, dim=0)
            for name, values in features.items()
        }
        states = self._states.repeat(len(next(iter(features.values()))), 1)
        noise = self._agent.noise(len(states), seeded_generator(ACTION_SEED, "tolerance", 0))
        return self._agent.predict(
            {name: torch.stack([values] * horizon, dim=1) for name, values in shown.items()},
            torch.stack([states] * horizon, dim=1),
            noise,
        )

    def distances(self, found: Features, expected: Features) -> ActionDistances:
        """Compare the actions that two sets of features lead to."""
        apart = (self.act(found) - self.act(expected)).abs().double().numpy()
        moves = self.spread > 0
        return ActionDistances(
            max_abs=float(apart.max()),
            share_of_spread=float((apart[..., moves] / self.spread[moves]).max(initial=0)),
        )


def _compare(
    variant: Variant, reference: Features, feature: str, policy: _Policy | None
) -> ToleranceRow:
    found = variant.features
    if found is None:
        return ToleranceRow(variant.name, None, None, variant.reason)
    return ToleranceRow(
        name=variant.name,
        features=Distances.between(found[feature], reference[feature]),
        actions=None if policy is None else policy.distances(found, reference),
        reason=variant.reason,
    )


def _cells(row: ToleranceRow, num_cells: int) -> list[str]:
    if row.features is None:
        return [row.name, row.reason, *[""] * (num_cells - 2)]
    found, acted = row.features, row.actions
    cells = [
        row.name,
        f"{found.max_abs:.1e}",
        f"{found.relative_l2_worst:.1e}",
        f"{found.equal_share:.1%}",
    ]
    if acted is not None:
        cells += [f"{acted.max_abs:.1e}", f"{acted.share_of_spread:.1%}"]
    return cells


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("store", type=parse_location)
    arguments.add_argument("--run", type=Path, help="a policy trained on it: measure actions too")
    arguments.add_argument("--encoder", help="path of the store's encoder, if it moved")
    arguments.add_argument("--feature", help="which one is compared; the store's first")
    arguments.add_argument("--compiled", action="store_true", help="torch.compile too; minutes")
    chosen = arguments.parse_args()
    report = measure_tolerance(
        chosen.store,
        chosen.run,
        encoder=chosen.encoder,
        feature=chosen.feature,
        compiled=chosen.compiled,
    )
    print(report.table())


if __name__ == "__main__":
    main()
