"""What a video codec takes away from a frame that is encoded for itself, and decoded again.

Source: LeRobot's settings for AV1, huggingface/lerobot@7427f318:src/lerobot/datasets/video_utils.py
(facts only); H.264 at the quality that FFmpeg's encoder has by default.
"""

import io
import os
from typing import Final, Literal

import av
import numpy as np
from jaxtyping import UInt8

from policy.errors import MissingExtraError

VideoCodec = Literal["h264", "av1"]

SETTINGS: Final[dict[VideoCodec, tuple[str, dict[str, str]]]] = {
    "h264": ("libx264", {"crf": "23", "threads": "1"}),
    "av1": ("libsvtav1", {"crf": "30", "svtav1-params": "lp=1"}),
}


def leave_real_time() -> None:
    """Make this thread an ordinary one again, after encoding AV1.

    For root, SVT-AV1 makes its caller a real-time thread, which can starve all other processes.
    """
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def through_video(
    frames: UInt8[np.ndarray, "n h w 3"], codec: VideoCodec
) -> UInt8[np.ndarray, "n h w 3"]:
    """Encode every frame as a key frame (4:2:0) and decode it to RGB again.

    Args:
        frames: RGB in [0, 255], of even height and width.
        codec: which one; `SETTINGS` holds encoder and quality.

    Raises:
        MissingExtraError: this build of PyAV has no such encoder.
    """
    name, options = SETTINGS[codec]
    try:
        av.Codec(name, "w")
    except ValueError as error:
        raise MissingExtraError(
            f"this build of PyAV has no encoder {name}; `pip install av` brings one that has"
        ) from error
    # Without it this encoder writes a page about itself to stderr.
    os.environ.setdefault("SVT_LOG", "1")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(name, rate=30, options={"g": "1", **options})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    leave_real_time()
    file.seek(0)
    with av.open(file, "r", format="mp4") as written:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in written.decode(video=0)])
