"""The decisions of a policy for running episodes, and how long each took."""

import time

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from pipeline.rollout.play.episode import Observation, Progress
from pipeline.rollout.play.journal import Episode
from pipeline.training.data.sampling import seeded_generator
from policy.agent import VLAAgent


def decide(
    agent: VLAAgent, seen: list[Progress], episodes: list[Episode], *, nfe: int
) -> list[Float32[np.ndarray, "n a"]]:
    """Return the next `num_action_steps` actions of some episodes, in the manifest's units.

    Views are encoded together, and each decision waits for all of them. The head decides for each
    episode alone: its last bits depend on the number of rows of a product. Seed and number of the
    decision determine the noise. Durations are appended to the episodes.
    """
    observations = [observation for progress in seen for observation in progress.observations]
    frames = np.stack([observation.frames for observation in observations])
    started = time.perf_counter()
    encoded = agent.encode_views(frames)
    encode_s = time.perf_counter() - started
    chunks = []
    first = 0
    for progress, episode in zip(seen, episodes, strict=True):
        steps = slice(first, first := first + len(progress.observations))
        features = {name: rows[steps] for name, rows in encoded.items()}
        draw = seeded_generator(episode.seed, "decision", len(episode.head_s))
        noise = agent.noise(1, draw, nfe).to(agent.device)
        started = time.perf_counter()
        window, state = _window(agent, features, progress.observations)
        window |= agent.encode_instruction(progress.instruction)
        chunk = agent.predict(window, state, noise, nfe)[0]
        if agent.language is not None and not episode.head_s:
            normalized = agent.action_normalizer.normalize(chunk)
            episode.first_actions = tuple(map(tuple, normalized.tolist()))
        chunks.append(chunk[: agent.config.num_action_steps].cpu().numpy())  # waits for a GPU
        episode.head_s.append(time.perf_counter() - started)
        episode.encode_s.append(encode_s)
        episode.render_s.append(progress.render_s)
    return chunks


def _window(
    agent: VLAAgent, features: dict[str, Tensor], observations: tuple[Observation, ...]
) -> tuple[dict[str, Tensor], Tensor]:
    """Return features and state as a batch of one; the first step is repeated as in training."""
    missing = agent.config.obs_horizon - len(observations)
    state = torch.from_numpy(np.stack([observation.state for observation in observations]))

    def padded(steps: Tensor) -> Tensor:
        return torch.cat([steps[:1].expand(missing, *steps.shape[1:]), steps])[None]

    window = {name: padded(steps) for name, steps in features.items()}
    return window, padded(state.to(agent.device))
