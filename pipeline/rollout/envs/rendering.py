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
from policy.errors import one_line


def _rendering_error(reason: str) -> RenderingError:
    chosen = os.environ.get("MUJOCO_GL", "(unset when mujoco was imported)")
    return RenderingError(
        f"expected MuJoCo to render without a screen, found MUJOCO_GL={chosen} unusable "
        f"({one_line(reason)[:160]}); run `apt-get install libegl1 libgl1-mesa-dri` (with "
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


class MujocoEnv:
    """What environments on MuJoCo share: cameras of a scene, in the policy's order, and a renderer.

    Subclasses add `effector` and the rest of `RobotEnv`.
    """

    def __init__(self, name: str, views: tuple[str, ...], model: Any, data: Any, size: int) -> None:
        """Find the cameras and build the renderer.

        Args:
            name: of the environment.
            views: names of cameras.
            model: the scene, a `mujoco.MjModel`; its settings of quality and size are changed.
            data: its state, a `mujoco.MjData`.
            size: width and height of the images in pixels.

        Raises:
            EnvError: a camera does not exist or is named twice.
            RenderingError: neither EGL nor OSMesa works.
        """
        numbers = {model.camera(index).name: index for index in range(model.ncam)}
        require_views(name, views, numbers)
        self.name = name
        self.view_names = views
        self.action_bounds: np.ndarray | None = None
        self.cameras = [numbers[view] for view in views]
        """Their numbers in the scene."""
        self._model, self._data, self._size = model, data, size
        self._looks = mujoco.MjvOption()
        """What is drawn."""
        self.renderer = build_renderer(model, size)

    def render(self) -> UInt8[np.ndarray, "v h w 3"]:
        frames = []
        for camera in self.cameras:
            self.renderer.update_scene(self._data, camera=camera, scene_option=self._looks)
            frames.append(self.renderer.render())
        return np.stack(frames)

    def effector(self) -> Float64[np.ndarray, " 3"]:
        """Return x, y, z of the end-effector, in meters."""
        raise NotImplementedError

    def effector_pixels(self) -> Float64[np.ndarray, "v 2"]:
        point = self.effector()
        return np.stack(
            [project_point(self._model, self._data, c, point, self._size) for c in self.cameras]
        )

    def close(self) -> None:
        self.renderer.close()


def build_renderer(model: Any, size: int) -> Any:
    """Build a renderer of square RGB images without shadows, reflections and multisampling."""
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
    if reason:
        gc.collect()
    sys.unraisablehook = unraisable_hook
    if reason:
        raise _rendering_error(reason)
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
    return renderer


def project_point(
    model: Any, data: Any, camera: int, point: Float64[np.ndarray, " 3"], size: int
) -> Float64[np.ndarray, " 2"]:
    """Return the pixel of `point` (meters) in a square image of the camera of that number.

    `size` is the image's in pixels; other arguments as for `MujocoEnv`, with poses up to date.

    Returns:
        Column and row in pixels, as MuJoCo renders it (not turned); (0, 0) is the outer corner of
        the upper left pixel. It may be outside of the image; NaN behind the camera.
    """
    # A MuJoCo camera looks along its own -z, with x to the right and y up.
    right, up, back = data.cam_xmat[camera].reshape(3, 3).T @ (point - data.cam_xpos[camera])
    if back >= 0:
        return np.full(2, np.nan)
    focal_length = size / 2 / np.tan(np.radians(model.cam_fovy[camera]) / 2)  # pixels
    return np.asarray(size / 2 + focal_length * np.array([right, -up]) / -back)
