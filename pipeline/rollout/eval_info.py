"""A rollout's result in the shape of LeRobot's `eval_info.json`, for whoever reads those.

Knows results only.
Source: huggingface/lerobot@7427f318:src/lerobot/scripts/lerobot_eval.py, eval_policy_all (facts).
Differs from the source: `max_rewards` is missing, since episodes keep the sum alone.
"""

import math
from pathlib import Path
from typing import Any

from pipeline.rollout.result import RolloutResult


def eval_info(result: RolloutResult, videos: list[Path], seconds: float) -> dict[str, Any]:
    """Return the content of the file.

    Args:
        result: of the rollout.
        videos: that were kept.
        seconds: that all episodes took together.
    """
    group, _, task = result.env.partition("/")
    rewards = [episode.reward for episode in result.episodes]
    paths = [str(path) for path in videos]
    shared = {"video_paths": paths, "predicted_video_paths": []}
    overall = {
        "avg_sum_reward": math.fsum(rewards) / len(rewards),
        "pc_success": 100.0 * result.success_rate,
        "n_episodes": len(rewards),
        **shared,
    }
    metrics = {
        "sum_rewards": rewards,
        "successes": [episode.success for episode in result.episodes],
        **shared,
    }
    return {
        "per_task": [{"task_group": group, "task_id": 0, "task": task, "metrics": metrics}],
        "per_group": {group: overall},
        "overall": {**overall, "eval_s": seconds, "eval_ep_s": seconds / len(rewards)},
    }
