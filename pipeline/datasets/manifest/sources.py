"""Opens one source of a manifest with the episodes that its filter keeps; compares checksums."""

import hashlib
import posixpath
from collections.abc import Callable, Collection, Iterator
from typing import Final, Literal

from pipeline.datasets.base import DatasetConfig, FormatReader
from pipeline.datasets.manifest.model import LoadedManifest
from pipeline.datasets.manifest.parts import key_path
from pipeline.datasets.manifest.paths import file_in
from pipeline.datasets.registry import detect_format, open_format
from pipeline.errors import DatasetError
from pipeline.storage.open import open_folder

_MAX_UNREADABLE: Final = 19  # episodes that are named; a report lists 20 findings of a kind

OnProblem = Callable[[Literal["unreadable", "fps"], str, Exception], None]
"""Is passed the problem of an episode or of the rate, and its name, so that the rest is opened."""


class SourceOpener:
    """Opens one source of a manifest."""

    def __init__(self, loaded: LoadedManifest, source: int) -> None:
        """Detect the format (DatasetError: there is no data, or not of a known format)."""
        self._manifest = loaded.manifest
        self._source, self._root = loaded.manifest.data_sources[source], loaded.roots[source]
        self._format = self._source.format or detect_format(self._root)
        episodes = self._source.episodes
        self._only = set(episodes.only or ()) if episodes else set()
        self._except = set(episodes.except_ or ()) if episodes else set()
        self._named: set[int] = set()
        self._label = f"sources[{source}]." if loaded.manifest.sources else ""
        self._where = f"{loaded.origin}: {self._label}"

    def open(self, on_problem: OnProblem | None) -> FormatReader:
        """Open the episodes that the manifest's filter keeps.

        Args:
            on_problem: is passed the error of each episode that does not open, and the others are
                opened; None raises the first error.

        Raises:
            DatasetError: an episode does not open; with `on_problem`, none does. Or the filter
                keeps none.
        """
        try:
            return self._open(lambda number: True)
        except (DatasetError, OSError) as error:
            if not self._kept:
                self._refuse_unknown_only()
            if on_problem is None or not self._kept:
                raise
            return self._open_readable(on_problem, error)

    def validation(self, reader: FormatReader) -> set[int]:
        """Return the numbers of the validation episodes; of a subset, those in use.

        Raises:
            DatasetError: filter or split name an episode that does not exist, or the split a subset
                of which none is in use.
        """
        self._refuse_unknown_only()
        named = self._source.splits.validation if self._source.splits is not None else ()
        if not isinstance(named, str):
            self._refuse_unknown(named, self._kept, "splits.validation")
            return set(named)
        if not (found := self._kept.intersection(reader.subset(named))):
            raise DatasetError(
                f"{self._where}splits.validation: expected episodes in the subset {named!r}, found "
                "none in use; choose another subset, or list episode numbers"
            )
        return found

    def _refuse_unknown(self, named: Collection[int], existing: set[int], key: str) -> None:
        unknown = sorted(set(named) - existing)
        if unknown and existing:
            raise DatasetError(
                f"{self._where}{key}: expected numbers of the {len(existing)} episodes (from "
                f"{min(existing)} to {max(existing)}), found {unknown[:5]} ({len(unknown)} in "
                "all); remove them"
            )

    @property
    def _kept(self) -> set[int]:
        """The episode numbers that the filter keeps, readable or not; known after `open`."""
        return set(filter(self._wants, self._named))

    def _wants(self, number: int) -> bool:
        return number in self._only if self._only else number not in self._except

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
        groups = [sorted(self._kept)]
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
            on_problem("unreadable", f"{self._label}episode {number}", reason)
        if rest := sum(map(len, groups)):
            more = DatasetError(f"{rest} more were not opened; correct the others first")
            on_problem("unreadable", f"{self._label}episodes", more)
        return self._open(set(good).__contains__)

    def _refuse_unknown_only(self) -> None:
        # Those of `except` need not exist: perhaps they were never downloaded.
        self._refuse_unknown(self._only, self._named, "episodes.only")


def verify_checksums(loaded: LoadedManifest) -> None:
    """Compare every file with its sha256 in the manifest, reading each file whole.

    Raises:
        DatasetError: a file is missing, unreadable, outside of the dataset, or a different one.
        ObjectStorageError: object storage refuses, or does not answer.
    """
    for error in wrong_checksums(loaded):
        raise error


def wrong_checksums(loaded: LoadedManifest) -> Iterator[DatasetError]:
    """Yield an error for every file that is missing, unreadable, outside, or a different one."""
    for source, root in zip(loaded.manifest.data_sources, loaded.roots, strict=True):
        checksums = source.checksums or {}
        is_folder = not checksums or open_folder(root).children() is not None
        for relative, expected in checksums.items():
            folder, name = root if is_folder else root.parent, posixpath.normpath(relative)
            try:
                path = root  # even a link to outside: `path` of the manifest names it
                if str(folder / name) != str(root):
                    path = file_in(folder, name, allow_outside=source.allow_outside)
                with open_folder(path.parent).open(path.name) as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except DatasetError as error:
                yield error
            except OSError as error:
                yield DatasetError(
                    f"{folder / name}: expected a file, because `checksums` of {loaded.origin} "
                    f"names it, found {error.strerror or 'none'}; download it again"
                )
            else:
                if found != expected:
                    yield DatasetError(
                        f"{path}: expected sha256 {expected} as in `checksums` of {loaded.origin}, "
                        f"found {found}; download the file again, or correct the manifest"
                    )
