"""The way of an end-effector through a camera's picture, in red.

Knows pictures and points; nothing about cameras or robots.
"""

from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image, ImageDraw

RED: Final = (230, 20, 20)
WHITE: Final = (255, 255, 255)
LINE_SHARE: Final = 1 / 128  # width of the line, of the picture's width
END_SHARE: Final = 1 / 48  # radius of the point where it ends


def write_path_image(
    path: Path, picture: UInt8[np.ndarray, "h w 3"], points: Float64[np.ndarray, "n 2"]
) -> None:
    """Draw a path over a picture and write it as PNG; nothing where no point is known.

    Args:
        path: of the PNG; its folder is made.
        picture: RGB.
        points: column and row in pixels, in order; NaN where unknown, which leaves a gap.
    """
    known = np.isfinite(points).all(axis=1)
    if not known.any():
        return
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    width = max(1, round(picture.shape[1] * LINE_SHARE))
    for color, extra in ((WHITE, 2), (RED, 0)):  # a white rim: some robots are red
        for start in range(len(points) - 1):
            if known[start] and known[start + 1]:
                ends = [tuple(map(float, points[index])) for index in (start, start + 1)]
                draw.line(ends, fill=color, width=width + extra)
    column, row = points[known][-1]
    radius = picture.shape[1] * END_SHARE
    draw.ellipse((column - radius, row - radius, column + radius, row + radius), outline=RED)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
