"""What the runs are, what makes their figures doubtful, and how often they succeeded."""

from collections.abc import Sequence

from pipeline.rollout.report.contents import RunContents


def overview(runs: Sequence[RunContents]) -> dict[str, object]:
    """Return what `templates/overview.html` shows."""
    return {
        "title": runs[0].label if len(runs) == 1 else f"{len(runs)} runs side by side",
        "alarms": [alarm for run in runs for alarm in _alarms(run)],
        "untrained": [run.label for run in runs if not run.description.data.encoder.pretrained],
        "cautions": [caution for run in runs for caution in _cautions(run)],
    }


def success(runs: Sequence[RunContents]) -> dict[str, object]:
    """Return what `templates/success.html` shows: the rollouts that count as a run's result."""
    return {"rollouts": [(run, rollout) for run in runs for rollout in run.final_rollouts]}


def _alarms(run: RunContents) -> list[str]:
    found = []
    for rollout in run.rollouts:
        where = f"{run.label}, rollout {rollout.name}"
        result, data = rollout.result, run.description.data
        found += [f"{where}: {alarm}" for alarm in result.alarms()]
        if result.encoder.fingerprint != data.encoder.fingerprint:
            found.append(f"{where}: the encoder is not that of training ({result.encoder.name})")
        if result.store_digest != data.store_digest:
            found.append(f"{where}: the policy was trained on other data than this run")
    return found


def _cautions(run: RunContents) -> list[str]:
    found = [f"{run.label}: {remark}." for remark in run.log.remarks]
    steps = run.description.config.steps
    if run.step < steps:
        found.append(
            f"{run.label}: not finished, the last checkpoint is at step {run.step:,} of {steps:,}."
        )
    return found
