"""Images and videos inside the page, as `data:` URLs, up to a total size.

What does not fit is named on the page.
"""

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

PNG_MARK: Final = b"\x89PNG\r\n\x1a\n"  # PNG specification, section 5.2
MP4_MARK: Final = b"ftyp"  # bytes 4 to 8 of an MP4 file; ISO/IEC 14496-12, section 4.3


@dataclass
class MediaBudget:
    """The files inlined into a page so far, and those that were left out."""

    limit: int
    """In bytes of files; inside the page they take a third more."""
    used: int = 0
    left_out: list[Path] = field(default_factory=list)
    """Files for which there was no room."""
    unusable: list[Path] = field(default_factory=list)
    """Files that are not of the type in their name."""

    @property
    def left_out_bytes(self) -> int:
        """Total size of the files for which there was no room."""
        return sum(path.stat().st_size for path in self.left_out)

    def image(self, path: Path) -> str | None:
        """Return a PNG file as a URL; None where it is absent or left out."""
        return self._inline(path, "image/png", PNG_MARK, 0)

    def video(self, path: Path) -> str | None:
        """Return an MP4 file as a URL; None where it is absent or left out."""
        return self._inline(path, "video/mp4", MP4_MARK, 4)

    def _inline(self, path: Path, kind: str, mark: bytes, offset: int) -> str | None:
        if not path.is_file():
            return None
        size = path.stat().st_size
        if self.used + size > self.limit:
            self.left_out.append(path)
            return None
        content = path.read_bytes()
        if content[offset : offset + len(mark)] != mark:
            self.unusable.append(path)
            return None
        self.used += len(content)
        return f"data:{kind};base64,{base64.b64encode(content).decode()}"
