"""Whether a run begins or resumes, and that it resumes as it began."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.errors import RunError
from pipeline.storage.local import is_vacant
from pipeline.training.run.checkpoint import checkpoint_steps
from pipeline.training.run.folder import (
    PROBE_FILE,
    START_FRAMES_FILE,
    RunDescription,
    StoreIdentity,
    read_run,
)


def is_new_run(run: Path, description: RunDescription, *, resume: bool) -> bool:
    """Return whether a run begins here, and refuse anything else in the folder (RunError).

    A run that ended before its first checkpoint has nothing to resume: it begins again, with any
    settings. A resumed run may get more steps.
    """
    if not (run / "run.json").exists():
        if not is_vacant(run) and not _was_cut_off(run):
            raise RunError(
                f"{run}: expected a training run or nothing, found other files; use another --out"
            )
        return True
    if not checkpoint_steps(run):
        return True
    if not resume:
        raise RunError(
            f"{run}: contains a run already; resume it with --resume, or use another --out"
        )
    held = read_run(run)
    config = held.config.model_copy(
        update={"steps": max(held.config.steps, description.config.steps)}
    )
    ours = description.model_copy(update={"init_from": held.init_from})
    change = _changed_stores(held.data.stores, description.data.stores) or next(
        _changed_fields(
            held.model_copy(update={"config": config}).model_dump(mode="json"),
            ours.model_dump(mode="json"),
        ),
        None,
    )
    if change is not None:
        raise RunError(
            f"{run}: was started with {change}; a resumed run keeps its settings, so use another "
            f"--out"
        )
    return False


def _was_cut_off(run: Path) -> bool:
    """Whether everything there is from a run that was killed before it had written run.json."""
    names = {path.name for path in run.iterdir()}
    return {n for n in names if not n.endswith(".partial")} <= {PROBE_FILE, START_FRAMES_FILE}


def _changed_stores(held: Sequence[StoreIdentity], ours: Sequence[StoreIdentity]) -> str | None:
    """Return how a run's stores differ; None if they are the same, with the same weights."""
    before, now = ([store.digest for store in side] for side in (held, ours))
    pairs = enumerate(zip(held, ours, strict=False), start=1)
    if len(before) != len(now):
        what = "their number differs"
    elif before != now and sorted(before) == sorted(now):
        what = "their order differs"
    else:
        field = "digest" if before != now else "weight"
        changed = [str(n) for n, (a, b) in pairs if getattr(a, field) != getattr(b, field)]
        if not changed:
            return None
        what = f"the {field} of store {', '.join(changed)} differs"
    theirs, mine = (", ".join(map(_describe, side)) for side in (held, ours))
    return f"stores {theirs}, now they are {mine}: {what}"


def _describe(store: StoreIdentity) -> str:
    return f"{store.name} ({store.digest[:12]}, weight {store.weight:g})"


def _changed_fields(held: object, ours: object, field: str = "") -> Iterator[str]:
    """Yield every field in which two descriptions differ, with both values."""
    if isinstance(held, dict) and isinstance(ours, dict) and held.keys() == ours.keys():
        for key in held:
            yield from _changed_fields(held[key], ours[key], f"{field}.{key}".lstrip("."))
    elif held != ours:
        yield f"{field}={held}, now it is {ours}"
