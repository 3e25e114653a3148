"""Versions of the libraries that decide what a dataset's frames and a simulator's episodes are."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version


def versions(*packages: str) -> Iterator[str]:
    """Yield each package with its installed version, as `mujoco 3.3.2`, or as absent."""
    for package in packages:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            yield f"{package} absent"
