"""The manifest of recordings: what `vla-embed` reads next to their folders."""

from collections.abc import Sequence

from pipeline.datasets.hdf5.recording import ACT, LIBERO, RecordingLayout
from pipeline.datasets.manifest.model import Manifest
from pipeline.rollout.envs.base import DEFAULT_RENDER_SIZE, ExpertEnv


def layout_of(env: str) -> RecordingLayout:
    """Return the layout of an environment's recordings: that of its published ones, or ACT's."""
    return LIBERO if env.startswith("libero/") else ACT


def manifest_of(
    env: ExpertEnv,
    *,
    has_failures: bool = False,
    render_size: int = DEFAULT_RENDER_SIZE,
    name: str | None = None,
    folders: Sequence[str] = (".",),
) -> Manifest:
    """Describe recordings of an environment, or of a suite of this `name`.

    `env` may be any of the suite's: what is described does not differ. `folders` are those of the
    recordings, relative to that of the manifest.
    """
    rendered = f", rendered at {render_size}x{render_size} pixels" * (
        render_size != DEFAULT_RENDER_SIZE
    )
    layout = layout_of(env.name)
    sources = [{"path": folder, "format": layout.format} for folder in folders]
    states = list(layout.state)
    return Manifest.from_dict(
        {
            "name": (name or env.name).replace("/", "-"),
            "source": env.source + ", failures included" * has_failures,
            "revision": env.revision + rendered,
            "license": env.license,
            **(sources[0] if len(sources) == 1 else {"sources": sources}),
            "fps": env.control_hz,
            **({"action_shift": layout.action_shift} if layout.action_shift else {}),
            "views": [{"name": name, "key": layout.image_key(name)} for name in env.view_names],
            "state": {"key": states if len(states) > 1 else states[0], "units": env.state_units},
            "action": {"key": layout.action, "units": env.action_units},
        }
    )
