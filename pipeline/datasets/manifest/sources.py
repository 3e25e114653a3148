"""Opens one source of a manifest with the episodes that its filter keeps.

Finds, where a source does not open, which episodes are to blame.
"""

import re
from collections.abc import Callable, Collection
from typing import Final, Literal, Protocol, runtime_checkable

from pipeline.datasets.base import DatasetPlace, FormatReader
from pipeline.datasets.manifest.model import LoadedManifest
from pipeline.datasets.manifest.parts import key_path
from pipeline.datasets.registry import detect_format, open_format
from pipeline.errors import DatasetError

_DIGITS: Final = re.compile(r"[0-9]+")
_MAX_UNREADABLE: Final = 19  # episodes; after that many the whole dataset is in question


@runtime_checkable  # the test run checks argument types
class Complain(Protocol):
    """Takes what is wrong with one episode or with the rate, so that the rest can be opened."""

    def __call__(self, kind: Literal["unreadable", "fps"], place: str, error: Exception) -> None:
        """Take one complaint; `place` is the episode or the manifest."""


class SourceOpener:
    """Opens one source of a manifest."""

    def __init__(self, loaded: LoadedManifest, source: int) -> None:
        """Find out the layout.

        Raises:
            DatasetError: there is nothing, or no layout that is read.
        """
        self._manifest, self._origin = loaded.manifest, loaded.origin
        self._place, self._root = loaded.manifest.places[source], loaded.roots[source]
        self._format = self._place.format or detect_format(self._root)
        self._named: set[int] = set()
        episodes = self._place.episodes
        self._only = None if episodes is None or episodes.only is None else set(episodes.only)
        self._except = set() if episodes is None else set(episodes.except_ or ())
        self.where = f"sources[{source}]." if loaded.manifest.sources else ""

    @property
    def kept(self) -> frozenset[int]:
        """The numbers of episodes that the files name and the manifest's filter keeps.

        Known after `open`; also of those that do not open.
        """
        return frozenset(number for number in self._named if self._wants(number))

    def open(self, complain: Complain | None) -> FormatReader:
        """Open the episodes that the manifest's filter keeps.

        Args:
            complain: is told of episodes that do not open, and they are passed over; None raises.

        Raises:
            DatasetError: an episode does not open; or, with `complain`, none does. Or the filter
                names episodes that are not there, or leaves none.
        """
        try:
            reader = self._open(lambda number: True)
        except (DatasetError, OSError) as error:
            if self._named and not self.kept:
                self._refuse_unknown_only()
                raise self._none_left() from error
            if complain is None:
                raise
            reader = self._open_without_unreadable(complain, error)
        self._named.update(map(reader.episode_number, range(reader.num_episodes)))
        try:
            self._refuse_unknown_only()
        except DatasetError:
            reader.close()
            raise
        return reader

    def refuse_unknown(self, named: Collection[int], there: Collection[int], key: str) -> None:
        """Refuse numbers of episodes that are not there.

        Raises:
            DatasetError: one of `named` is not among those that are `there`.
        """
        unknown = sorted(set(named).difference(there))
        if unknown:
            raise DatasetError(
                f"{self._origin}: {self.where}{key}: expected numbers of episodes that "
                f"are there ({len(there)}, from {min(there)} to {max(there)}), found "
                f"{unknown[:5]} ({len(unknown)} in all); remove them"
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
            DatasetPlace(
                root=self._root,
                view_keys=tuple(key_path(view.key) for view in manifest.views),
                number_keys=tuple(dict.fromkeys(numbers)),
                allow_outside=self._place.allow_outside,
                keeps=keeps,
            ),
        )

    def _open_without_unreadable(self, complain: Complain, first: Exception) -> FormatReader:
        """Find the episodes that do not open by halving, and open the others.

        Each part is opened together with the first good episode, with which the others must agree.
        """
        good: list[int] = []
        bad: dict[int, Exception] = {}
        parts: list[list[int]] = []
        while len(bad) < _MAX_UNREADABLE:
            if not parts:  # opening further than before may have shown further episodes
                new = sorted(self.kept.difference(good, bad))
                if not new:
                    break
                parts = [new]
            part = parts.pop()
            try:
                self._open({*good[:1], *part}.__contains__).close()
            except (DatasetError, OSError) as error:
                half = len(part) // 2
                if half:
                    parts += [part[half:], part[:half]]
                else:
                    bad[part[0]] = error
            else:
                good += part
        if not good:  # mostly one cause that all have in common, such as a wrong key
            told = {_cause(first)}
            for number, reason in bad.items():
                if _cause(reason) not in told:
                    told.add(_cause(reason))
                    complain("unreadable", f"{self.where}episode {number}", reason)
            raise first
        for number, reason in bad.items():
            complain("unreadable", f"{self.where}episode {number}", reason)
        num_left = len(self.kept) - len(good) - len(bad)
        if num_left:
            rest = DatasetError(f"{num_left} more were not looked at; correct the others first")
            complain("unreadable", f"{self.where}episodes", rest)
        return self._open(set(good).__contains__)

    def _refuse_unknown_only(self) -> None:
        # Those of `except` need not be there: perhaps they were never downloaded.
        if self._only is not None:
            self.refuse_unknown(self._only, self._named, "episodes.only")

    def _none_left(self) -> DatasetError:
        return DatasetError(
            f"{self._origin}: {self.where}episodes.except: expected at least one episode "
            f"left, found all {len(self._named)} left out; name fewer"
        )


def _cause(error: Exception) -> str:
    """Return what is alike in the messages of one cause: all but names and sizes of files."""
    return _DIGITS.sub("", str(error))
