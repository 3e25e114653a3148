"""The report of a check: a table for people, a JSON document for programs."""

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

DOCUMENT_VERSION: Final = 1  # increases when a field of `to_dict` is renamed or removed
MAX_LISTED: Final = 20  # findings of one kind that are listed
Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One problem, or something that a person should look at."""

    severity: Severity
    """`error`: training on it is wrong or impossible. `warning`: may be intended."""
    kind: str
    """data_manifests/README.md lists all."""
    place: str
    """The file, episode, view or column."""
    found: str
    to_do: str
    """How to correct it."""


@dataclass(frozen=True)
class ViewSummary:
    """One camera, over the episodes whose frames were read."""

    name: str
    sizes: tuple[tuple[int, int], ...]
    """All (height, width) in pixels."""
    num_frames: int
    max_drift_s: float
    """Largest distance between a step and its frame, in seconds."""


@dataclass(frozen=True)
class DimSummary:
    """One column of the state or of the action, over all episodes, in the manifest's units."""

    name: str
    """`state[3]`: counted from 0."""
    minimum: float
    maximum: float
    mean: float
    std: float


@dataclass(frozen=True)
class CheckReport:
    """What a check read, and what it found."""

    manifest: str
    """The manifest or the dataset that was checked."""
    name: str
    findings: tuple[Finding, ...]
    num_episodes: int = 0
    """Episodes of the manifest that open; 0 if the dataset does not."""
    num_steps: int = 0
    seconds: float = 0.0
    """Their duration at the manifest's rate."""
    frames_of: tuple[int, ...] = ()
    """Episodes whose frames were read, by their numbers in the files."""
    views: tuple[ViewSummary, ...] = ()
    dims: tuple[DimSummary, ...] = ()
    statements: tuple[str, ...] = ()
    """Metadata of the files, in words."""
    sheet: str | None = None

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {"version": DOCUMENT_VERSION, "clean": self.is_clean, **asdict(self)}

    def table(self) -> str:
        """Return the report as a table of fixed-width text."""
        blocks = [
            f"{self.manifest}: {self.name}: {self.num_episodes} episodes, {self.num_steps} steps, "
            f"{self.seconds:.1f} s; read the frames of {len(self.frames_of)} episodes"
        ]
        if self.statements:
            blocks.append("according to the files: " + "; ".join(self.statements))
        views = [["view", "size", "frames read", "drift"]]
        dims = [["column", "min", "max", "mean", "std"]]
        for view in self.views:
            sizes = ", ".join(f"{height}x{width}" for height, width in view.sizes)
            drift = f"{1000 * view.max_drift_s:.1f} ms"
            views.append([view.name, sizes, str(view.num_frames), drift])
        for dim in self.dims:
            figures = (dim.minimum, dim.maximum, dim.mean, dim.std)
            dims.append([dim.name, *(f"{figure:.4g}" for figure in figures)])
        blocks += [_columns(rows) for rows in (views, dims) if len(rows) > 1]
        blocks += [
            f"{finding.severity}: {finding.kind}: {finding.place}\n    found: {finding.found}\n"
            f"    to do: {finding.to_do}"
            for finding in self.findings
        ]
        if self.sheet:
            blocks.append(f"contact sheet: {self.sheet}; look for flipped images, swapped colors")
        counts = Counter(finding.severity for finding in self.findings)
        verdict = [f"{count} {severity}{'s' * (count > 1)}" for severity, count in counts.items()]
        return "\n\n".join([*blocks, ", ".join(verdict) or "no problems found"])


class Findings:
    """Collects findings; of each kind the first are listed and the others counted."""

    def __init__(self) -> None:
        """Start with none."""
        self._of_kind: dict[str, list[Finding]] = defaultdict(list)

    def add(self, severity: Severity, kind: str, place: str, found: str, to_do: str) -> None:
        """Add one finding."""
        self._of_kind[kind].append(Finding(severity, kind, place, found, to_do))

    def add_error(self, kind: str, place: str, error: Exception) -> None:
        """Add a reader's error: `place: expected, found; what to do`."""
        text = " ".join(str(error).split()).removeprefix(f"{place}: ")
        found, _, to_do = text.rpartition("; ")
        self.add("error", kind, place, found or text, to_do if found else "correct it")

    def all(self) -> tuple[Finding, ...]:
        """Return the findings, errors first, and the number of further ones per kind."""
        listed = []
        for kind, found in self._of_kind.items():
            listed += found[:MAX_LISTED]
            if len(found) > MAX_LISTED:
                more = f"{len(found) - MAX_LISTED} more of this kind"
                to_do = "correct the above and run the check again"
                listed.append(Finding(found[0].severity, kind, "elsewhere", more, to_do))
        return tuple(sorted(listed, key=lambda finding: finding.severity != "error"))


def _columns(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
