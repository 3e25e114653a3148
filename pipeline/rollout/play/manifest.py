"""The manifest of recordings: what `vla-embed` reads next to their folders."""

from collections.abc import Sequence

from pipeline.datasets.hdf5.recording import ACTION_KEY, IMAGES_GROUP, STATE_KEY
from pipeline.datasets.manifest.model import Manifest
from pipeline.rollout.envs.base import DEFAULT_RENDER_SIZE, ExpertEnv


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
    sources = [{"path": folder, "format": "aloha_hdf5"} for folder in folders]
    return Manifest.from_dict(
        {
            "name": (name or env.name).replace("/", "-"),
            "source": env.source + ", failures included" * has_failures,
            "revision": env.revision + rendered,
            "license": env.license,
            **(sources[0] if len(sources) == 1 else {"sources": sources}),
            "fps": env.control_hz,
            "views": [{"name": name, "key": f"{IMAGES_GROUP}/{name}"} for name in env.view_names],
            "state": {"key": STATE_KEY, "units": env.state_units},
            "action": {"key": ACTION_KEY, "units": env.action_units},
        }
    )
