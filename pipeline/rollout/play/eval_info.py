"""A rollout's result in the shape of LeRobot's `eval_info.json`, for whoever reads those.

Knows results only.
Source: huggingface/lerobot@7427f318:src/lerobot/scripts/lerobot_eval.py, eval_policy_all (facts).
"""

import math
from pathlib import Path
from typing import Any

from pipeline.rollout.play.result import RolloutResult


def eval_info(result: RolloutResult, videos: list[Path], seconds: float) -> dict[str, Any]:
    """Return the content of the file.

    Args:
        result: of the rollout.
        videos: that were kept.
        seconds: that all episodes took together.
    """
    group = result.env.partition("/")[0]
    rewards = [episode.reward for episode in result.episodes]
    largest = [episode.max_reward for episode in result.episodes]
    paths = [str(path) for path in videos]
    shared = {"video_paths": paths, "predicted_video_paths": []}
    overall = {
        "avg_sum_reward": math.fsum(rewards) / len(rewards),
        "avg_max_reward": math.fsum(largest) / len(largest),
        "pc_success": 100.0 * result.success_rate,
        "n_episodes": len(rewards),
        **shared,
    }
    metrics = {
        "sum_rewards": rewards,
        "max_rewards": largest,
        "successes": [episode.success for episode in result.episodes],
        **shared,
    }
    return {
        "per_task": [{"task_group": group, "task_id": 0, "metrics": metrics}],
        "per_group": {group: overall},
        "overall": {**overall, "eval_s": seconds, "eval_ep_s": seconds / len(rewards)},
    }
