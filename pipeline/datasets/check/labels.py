"""Findings about the metadata of episodes: failures, several tasks, shifted actions."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from pipeline.datasets.base import DatasetFacts, EpisodeLabel
from pipeline.datasets.check.report import Findings

_MAX_TASKS: Final = 5  # that a finding names


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
            found = f"{len(self.failed)} of {self.num_labeled} episodes are marked as failed"
            to_do = f"leave them out with `episodes = {{except = {self.failed}}}`"
            if len(self.failed) == self.num_labeled:
                to_do = "leave them out unless the mark was never set"
            findings.add("warning", "failed", place, found, to_do)
        if len(self.tasks) > 1:
            named = list(self.tasks.items())[:_MAX_TASKS]
            found = ", ".join(f"{task[:60]!r} ({len(numbers)} episodes)" for task, numbers in named)
            more = ", ..." if len(self.tasks) > _MAX_TASKS else ""
            found = f"{len(self.tasks)} tasks, which need instructions: {found}{more}"
            to_do = "use `--text-encoder` and `--preset multitask`, or choose one task's episodes"
            findings.add("warning", "tasks", place, found, to_do)


def statements(facts: DatasetFacts, labels: Labels) -> Iterable[str]:
    """Describe the metadata of a source in words."""
    if labels.tasks:
        names = [task[:60] for task in labels.tasks]
        more = ", ..." if len(names) > _MAX_TASKS else ""
        yield f"{len(names)} task{'s' * (len(names) > 1)}: {', '.join(names[:_MAX_TASKS])}{more}"
    if labels.num_labeled:
        num_solved = labels.num_labeled - len(labels.failed)
        yield f"{num_solved} of {labels.num_labeled} episodes marked as successful"
    if facts.gripper:
        yield f"gripper of the action: {facts.gripper}"
    yield from facts.remarks
