"""Opens one source of a manifest with the episodes that its filter keeps."""

from collections.abc import Callable, Collection
from typing import Final, Literal

from pipeline.datasets.base import DatasetConfig, FormatReader
from pipeline.datasets.manifest.model import LoadedManifest
from pipeline.datasets.manifest.parts import key_path
from pipeline.datasets.registry import detect_format, open_format
from pipeline.errors import DatasetError

_MAX_UNREADABLE: Final = 19  # episodes that are named; a report lists 20 findings of a kind

OnProblem = Callable[[Literal["unreadable", "fps"], str, Exception], None]
"""Is passed the problem of an episode or of the rate, and its name, so that the rest is opened."""


class SourceOpener:
    """Opens one source of a manifest."""

    def __init__(self, loaded: LoadedManifest, source: int) -> None:
        """Detect the format (DatasetError: there is no data, or not of a known format)."""
        self._manifest, self._origin = loaded.manifest, loaded.origin
        self._source, self._root = loaded.manifest.data_sources[source], loaded.roots[source]
        self._format = self._source.format or detect_format(self._root)
        self._named: set[int] = set()
        episodes = self._source.episodes
        self._only = None if episodes is None or episodes.only is None else set(episodes.only)
        self._except = set() if episodes is None else set(episodes.except_ or ())
        self.where = f"sources[{source}]." if loaded.manifest.sources else ""

    @property
    def kept(self) -> frozenset[int]:
        """The episode numbers that the filter keeps, readable or not; known after `open`."""
        return frozenset(number for number in self._named if self._wants(number))

    def open(self, on_problem: OnProblem | None) -> FormatReader:
        """Open the episodes that the manifest's filter keeps.

        Args:
            on_problem: is passed the error of each episode that does not open, and the others are
                opened; None raises the first error.

        Raises:
            DatasetError: an episode does not open; with `on_problem`, none does. Or the filter
                names episodes that do not exist, or keeps none.
        """
        try:
            reader = self._open(lambda number: True)
        except (DatasetError, OSError) as error:
            if self._named and not self.kept:
                self._refuse_unknown_only()
                raise DatasetError(
                    f"{self._origin}: {self.where}episodes.except: expected at least one episode "
                    f"left, found all {len(self._named)} left out; list fewer"
                ) from error
            if on_problem is None:
                raise
            reader = self._open_readable(on_problem, error)
        self._named.update(map(reader.episode_number, range(reader.num_episodes)))
        try:
            self._refuse_unknown_only()
        except DatasetError:
            reader.close()
            raise
        return reader

    def refuse_unknown(self, named: Collection[int], existing: Collection[int], key: str) -> None:
        """Refuse numbers of episodes that do not exist; `key` of the manifest names them.

        Raises:
            DatasetError: one of `named` is not in `existing`.
        """
        unknown = sorted(set(named).difference(existing))
        if unknown:
            raise DatasetError(
                f"{self._origin}: {self.where}{key}: expected numbers of the {len(existing)} "
                f"episodes (from {min(existing)} to {max(existing)}), found {unknown[:5]} "
                f"({len(unknown)} in all); remove them"
            )

    def _wants(self, number: int) -> bool:
        return number not in self._except and (self._only is None or number in self._only)

    def _open(self, is_tried: Callable[[int], bool]) -> FormatReader:
        manifest = self._manifest

        def keeps(number: int) -> bool:
            self._named.add(number)
            return self._wants(number) and is_tried(number)

        numbers = (*manifest.state.key_paths, *manifest.action.key_paths)
        return open_format(
            self._format,
            DatasetConfig(
                root=self._root,
                view_keys=tuple(key_path(view.key) for view in manifest.views),
                number_keys=tuple(dict.fromkeys(numbers)),
                allow_outside=self._source.allow_outside,
                keeps=keeps,
            ),
        )

    def _open_readable(self, on_problem: OnProblem, first: Exception) -> FormatReader:
        """Find the episodes that do not open by bisection, and open the others.

        Each half is opened together with the first good episode: all must have equal widths.
        """
        good: list[int] = []
        bad: dict[int, Exception] = {}
        groups = [sorted(self.kept)]
        while groups and groups[-1] and len(bad) < _MAX_UNREADABLE:
            group = groups.pop()
            try:
                self._open({*good[:1], *group}.__contains__).close()
                good += group
            except (DatasetError, OSError) as error:
                half = len(group) // 2
                if half:
                    groups += [group[half:], group[:half]]
                else:
                    bad[group[0]] = error
        if not good:  # mostly a common cause, such as a wrong key
            raise first
        for number, reason in bad.items():
            on_problem("unreadable", f"{self.where}episode {number}", reason)
        if rest := sum(map(len, groups)):
            more = DatasetError(f"{rest} more were not opened; correct the others first")
            on_problem("unreadable", f"{self.where}episodes", more)
        return self._open(set(good).__contains__)

    def _refuse_unknown_only(self) -> None:
        # Those of `except` need not exist: perhaps they were never downloaded.
        if self._only is not None:
            self.refuse_unknown(self._only, self._named, "episodes.only")
