"""The contact sheet of a dataset: first, middle and last frame of some episodes, in every view.

It shows people what no program can judge: frames upside down, mirrored, with red and blue swapped,
or of the wrong camera.
"""

import io
from typing import Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

_CELL: Final = 224  # pixels; the longer side of a frame on the sheet
_LABEL_HEIGHT: Final = 14  # pixels; one line of Pillow's own font
_GAP: Final = 4  # pixels
_PAPER: Final = (255, 255, 255)
_INK: Final = (0, 0, 0)


SheetFrame = tuple[str, UInt8[np.ndarray, "h w 3"] | None]
"""Label and RGB frame, values in [0, 255]; None if it does not read, drawn as a crossed box."""


def contact_sheet(rows: list[list[SheetFrame]]) -> bytes:
    """Draw frames in rows, each below its label.

    Args:
        rows: at least one, of equal lengths.

    Returns:
        A PNG file.
    """
    cell_height = _CELL + _LABEL_HEIGHT + _GAP
    size = (len(rows[0]) * (_CELL + _GAP) + _GAP, len(rows) * cell_height + _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    for row, cells in enumerate(rows):
        for column, (label, frame) in enumerate(cells):
            x, y = _GAP + column * (_CELL + _GAP), _GAP + row * cell_height
            # Covers the end of a long label to the left.
            pen.rectangle((x, y, x + _CELL, y + _LABEL_HEIGHT), fill=_PAPER)
            pen.text((x, y), label, fill=_INK)
            _paste(sheet, pen, frame, (x, y + _LABEL_HEIGHT))
    content = io.BytesIO()
    sheet.save(content, "PNG")
    return content.getvalue()


def _paste(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    frame: UInt8[np.ndarray, "h w 3"] | None,
    corner: tuple[int, int],
) -> None:
    x, y = corner
    if frame is None:
        far = (x + _CELL - 1, y + _CELL - 1)
        pen.rectangle((corner, far), outline=_INK)
        pen.line((corner, far), fill=_INK)
        return
    height, width = frame.shape[:2]
    scale = _CELL / max(height, width)
    # Nearest neighbor for small frames, so that single pixels stay visible.
    filter_ = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    new_size = (max(1, round(width * scale)), max(1, round(height * scale)))
    sheet.paste(Image.fromarray(frame).resize(new_size, filter_), corner)
