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
    """Say whether a run begins here, and refuse whatever else `run` may hold.

    One that ended before its first checkpoint holds nothing to resume, so it begins anew, with
    whatever settings.

    Args:
        run: folder of the run.
        description: what is about to be trained.
        resume: go on with the run in `run` if there is one; it may get more steps.

    Raises:
        RunError: `run` holds something else, or a run that was started otherwise, or one although
            `resume` is False.
    """
    if not (run / "run.json").exists():
        if not is_vacant(run) and not _was_cut_off(run):
            raise RunError(f"{run}: holds something that is no training run; name another --out")
        return True
    if not checkpoint_steps(run):
        return True
    if not resume:
        raise RunError(f"{run}: holds a run already; --resume goes on with it, or name another")
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
            f"{run}: was started with {change}; a run resumes unchanged, so name another --out"
        )
    return False


def _was_cut_off(run: Path) -> bool:
    """Whether all there is was left by a run that was killed before it had written run.json."""
    names = {path.name for path in run.iterdir()}
    return {n for n in names if not n.endswith(".partial")} <= {PROBE_FILE, START_FRAMES_FILE}


def _changed_stores(held: Sequence[StoreIdentity], ours: Sequence[StoreIdentity]) -> str | None:
    """Say what became of a run's stores; None where they are the same, alike weighted."""
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
    theirs, mine = (", ".join(map(_words, side)) for side in (held, ours))
    return f"stores {theirs}, now they are {mine}: {what}"


def _words(store: StoreIdentity) -> str:
    return f"{store.name} ({store.digest[:12]}, weight {store.weight:g})"


def _changed_fields(held: object, ours: object, place: str = "") -> Iterator[str]:
    """Name every field in which two descriptions differ, with both values."""
    if isinstance(held, dict) and isinstance(ours, dict) and held.keys() == ours.keys():
        for key in held:
            yield from _changed_fields(held[key], ours[key], f"{place}.{key}".lstrip("."))
    elif held != ours:
        yield f"{place}={held}, now it is {ours}"
