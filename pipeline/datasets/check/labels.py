"""Findings about the metadata of episodes: failures, several tasks, shifted actions."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from pipeline.datasets.base import DatasetFacts, EpisodeLabel
from pipeline.datasets.check.report import Findings

_MAX_TASKS: Final = 5  # that a finding names
_MAX_NUMBERS: Final = 200  # of episodes that an advice lists


@dataclass
class Labels:
    """Collects the labels of the episodes of one source."""

    num_labeled: int = 0
    """Episodes with a mark of success or failure."""
    failed: list[int] = field(default_factory=list)
    tasks: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Numbers of the episodes of each task."""

    def add(self, number: int, label: EpisodeLabel) -> None:
        """Add the label of an episode."""
        self.num_labeled += label.success is not None
        if label.success is False:
            self.failed.append(number)
        if label.task is not None:
            self.tasks[label.task].append(number)

    def report(self, place: str, findings: Findings) -> None:
        """Add findings about failed episodes, and about several tasks in one dataset."""
        if self.failed:
            numbers = ", ".join(map(str, self.failed[:_MAX_NUMBERS]))
            is_all = len(self.failed) == self.num_labeled
            findings.add(
                "warning",
                "failed",
                place,
                f"{len(self.failed)} of {self.num_labeled} episodes are marked as failed; a "
                "policy imitates them too",
                "leave them out unless the mark was never set"
                if is_all
                else f"leave them out with `episodes = {{except = [{numbers}]}}`",
            )
        if len(self.tasks) > 1:
            named = list(self.tasks.items())[:_MAX_TASKS]
            found = ", ".join(f"{task[:60]!r} ({len(numbers)} episodes)" for task, numbers in named)
            more = ", ..." if len(self.tasks) > _MAX_TASKS else ""
            findings.add(
                "warning",
                "tasks",
                place,
                f"{len(self.tasks)} tasks: {found}{more}; only a policy with instructions knows "
                "which one to do",
                "embed with `--text-encoder` and train with `--preset multitask`, choose the "
                "episodes of one task with `episodes = {only = [...]}`, or keep all if the frames "
                "show which task it is",
            )


def check_action_shift(
    shift: int, facts: Sequence[DatasetFacts], origin: str, findings: Findings
) -> None:
    """Compare the manifest's `action_shift` with the one that the files need."""
    for needed in sorted({of.action_shift for of in facts}):
        if needed and needed != shift:
            findings.add(
                "warning",
                "shift",
                origin,
                f"`action_shift` is {shift}; files of LIBERO contain with each action the frame "
                "that was seen after it",
                f"write `action_shift = {needed}` into the manifest, unless these files were made "
                "in another way",
            )


def statements(facts: DatasetFacts, labels: Labels) -> Iterable[str]:
    """Describe the metadata of a source in words."""
    if labels.tasks:
        names = [task[:60] for task in labels.tasks]
        more = ", ..." if len(names) > _MAX_TASKS else ""
        yield f"{len(names)} task{'s' * (len(names) > 1)}: {', '.join(names[:_MAX_TASKS])}{more}"
    if labels.num_labeled:
        yield (
            f"{labels.num_labeled - len(labels.failed)} of {labels.num_labeled} episodes marked "
            "as successful"
        )
    if facts.gripper:
        yield f"gripper of the action: {facts.gripper}"
    yield from facts.remarks
