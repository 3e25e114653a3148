"""MuJoCo's images without a screen: how it is imported, its cameras, one projection.

Import it before anything else that imports mujoco: MuJoCo and dm_control choose their OpenGL when
they are imported.
"""

import gc
import os
import sys
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from pipeline.errors import RenderingError
from pipeline.rollout.envs.guard import require_views


def _rendering_error(reason: str) -> RenderingError:
    chosen = os.environ.get("MUJOCO_GL", "(unset when mujoco was imported)")
    return RenderingError(
        f"expected MuJoCo to render without a screen, found MUJOCO_GL={chosen} unusable "
        f"({' '.join(reason.split())[:160]}); run `apt-get install libegl1 libgl1-mesa-dri` (with "
        "MUJOCO_GL=egl or unset), or set MUJOCO_GL=osmesa and install libosmesa6"
    )


# MuJoCo reads MUJOCO_GL once, while it is imported; without it, it looks for a screen.
if sys.platform == "linux" and "mujoco" not in sys.modules:
    os.environ.setdefault("MUJOCO_GL", "egl")
try:
    import mujoco
except ModuleNotFoundError:
    raise  # not installed: `make_env` names the extra
except Exception as error:  # a broken GL raises AttributeError, ImportError, OSError, RuntimeError
    raise _rendering_error(str(error)) from error


class SceneCameras:
    """Some cameras of a scene, in the order in which the policy sees them, with a renderer."""

    def __init__(
        self,
        name: str,
        views: tuple[str, ...],
        model: Any,
        data: Any,
        *,
        size: int,
        looks: Any = None,
    ) -> None:
        """Find the cameras and build the renderer, to be closed before the program ends.

        Args:
            name: of the environment, for messages.
            views: names of cameras.
            model: the scene, a `mujoco.MjModel`; its settings of quality and size are changed.
            data: its state, a `mujoco.MjData`.
            size: width and height of the images in pixels.
            looks: what is drawn, a `mujoco.MjvOption`; None is MuJoCo's default.

        Raises:
            EnvError: a camera does not exist or is named twice.
            RenderingError: neither EGL nor OSMesa works.
        """
        numbers = {model.camera(index).name: index for index in range(model.ncam)}
        require_views(name, views, numbers)
        self.numbers = [numbers[view] for view in views]
        """Of the cameras in the scene."""
        self._model, self._data, self._size, self._looks = model, data, size, looks
        self.renderer = build_renderer(model, size)

    def render(self) -> UInt8[np.ndarray, "v h w 3"]:
        """Render every camera now, RGB, values in [0, 255], as MuJoCo does (not turned)."""
        frames = []
        for camera in self.numbers:
            self.renderer.update_scene(self._data, camera=camera, scene_option=self._looks)
            frames.append(self.renderer.render())
        return np.stack(frames)

    def project(self, point: Float64[np.ndarray, " 3"]) -> Float64[np.ndarray, "v 2"]:
        """Return the pixel of a point in every camera; see `project_point`."""
        pixels = [
            project_point(self._model, self._data, camera, point, self._size)
            for camera in self.numbers
        ]
        return np.stack(pixels)


def build_renderer(model: Any, size: int) -> Any:
    """Build a renderer of square RGB images without shadows, reflections and multisampling.

    Arguments and errors as for `SceneCameras`.
    """
    # Three views of Meta-World take 36 ms on one core of a CPU, 58 ms with the default 4 samples
    # per pixel and 290 ms with shadows. Both settings are read when the renderer is built.
    model.vis.quality.offsamples = 0
    buffer = model.vis.global_
    buffer.offwidth, buffer.offheight = max(buffer.offwidth, size), max(buffer.offheight, size)
    reason = ""
    # Half-built renderers print from their __del__; the failure is raised once, below, instead. It
    # is not chained, because a chained error keeps them alive until after the hook is back.
    unraisable_hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        renderer = mujoco.Renderer(model, size, size)
    except Exception as error:  # noqa: BLE001 - drivers raise anything
        reason = str(error) or type(error).__name__
    try:
        if reason:
            gc.collect()
            raise _rendering_error(reason)
    finally:
        sys.unraisablehook = unraisable_hook
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
    return renderer


def project_point(
    model: Any, data: Any, camera: int, point: Float64[np.ndarray, " 3"], size: int
) -> Float64[np.ndarray, " 2"]:
    """Return the pixel of a point of the world in a square image of a camera.

    Args:
        model: the scene, a `mujoco.MjModel`.
        data: its state, a `mujoco.MjData`, with the cameras' poses up to date.
        camera: number of the camera.
        point: x, y, z in meters.
        size: width and height of the image in pixels.

    Returns:
        Column and row in pixels, as MuJoCo renders it (not turned); (0, 0) is the outer corner of
        the upper left pixel. It may be outside of the image; NaN behind the camera.
    """
    # A MuJoCo camera looks along its own -z, with x to the right and y up.
    right, up, back = data.cam_xmat[camera].reshape(3, 3).T @ (point - data.cam_xpos[camera])
    if back >= 0:
        return np.full(2, np.nan)
    focal_length = size / 2 / np.tan(np.radians(model.cam_fovy[camera]) / 2)  # pixels
    pixels: np.ndarray = size / 2 + focal_length * np.array([right, -up]) / -back
    return pixels
