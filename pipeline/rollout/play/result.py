"""The result of a rollout: episodes, success with its interval, latency; stored as JSON."""

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict

from pipeline.rollout.gate.camera_verdict import CameraCheckResult
from policy.spec import EncoderIdentity

NORMAL_QUANTILE: Final = 1.959964  # two-sided 95 % of a standard normal


class EpisodeResult(BaseModel):
    """One episode."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    """Seed the environment was reset with."""
    success: bool
    """Solved, by the simulator's own measure."""
    steps: int
    """Control steps taken, the solving one included."""
    reward: float
    """Sum of the simulator's rewards."""
    max_reward: float
    """The largest of them."""
    decisions: int
    """Number of decisions of the policy."""
    failure: str | None = None
    """Why the simulator failed after `steps` steps, in one line; the episode ended there, unsolved.
    None where it did not fail."""


class Latency(BaseModel):
    """Duration of one decision in seconds, over all decisions of a rollout."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: list[float]) -> "Latency":
        """Summarize measured durations, at least one."""
        p50, p95, p99 = np.percentile(seconds, [50, 95, 99])
        return cls(p50=float(p50), p95=float(p95), p99=float(p99))


class Disagreement(BaseModel):
    """Difference of one jump of the head and two, relative to their length, over all decisions.

    0 is perfect and 2 the worst. It needs no labels: a one-step policy is uncertain where it is
    large.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    median: float
    p95: float

    @classmethod
    def of(cls, residuals: list[float]) -> "Disagreement | None":
        """Summarize the residuals of all decisions; None where there are none."""
        if not residuals:
            return None
        median, p95 = np.percentile(residuals, [50, 95])
        return cls(median=float(median), p95=float(p95))


class RolloutResult(BaseModel):
    """A rollout, as stored in `result.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    env: str
    """The environment's name."""
    run: str
    """Folder name of the training run."""
    checkpoint_step: int
    """Optimizer steps behind the averaged weights."""
    nfe: int
    """Number of function evaluations per decision."""
    max_steps: int
    """Control steps after which an episode counts as failed."""
    encoder: EncoderIdentity
    """The encoder of the live views."""
    dataset: str
    """Names of the training's datasets."""
    store_digest: str
    """Digest of the training's stores."""
    code_version: str
    """Of this package."""
    render_size: int
    """Width and height in pixels of rendered images, before they were resized for the encoder."""
    num_envs: int
    """Environments that ran at once; changes no episode, only times."""
    gate_overridden: tuple[str, ...]
    """What the gate would have refused, where it was overridden."""
    episodes: tuple[EpisodeResult, ...]
    """In the order of their seeds."""
    success_rate: float
    """Share of solved episodes, in [0, 1]."""
    success_interval: tuple[float, float]
    """Wilson interval of the success rate at 95 %."""
    render_s: Latency
    """Rendering the observation steps of one decision."""
    encode_s: Latency
    """Encoding their views."""
    head_s: Latency
    """Condition and action head; without the evaluations that measure `disagreement`."""
    disagreement: Disagreement | None = None
    """Of the head with itself; None where the objective does not learn jumps."""

    camera_check: CameraCheckResult
    """Whether the cameras showed what they showed in training."""

    def alarms(self) -> list[str]:
        """Return one sentence per reason to doubt the figures; a report prints them in red."""
        found = [f"a check was overridden: {reason}" for reason in self.gate_overridden]
        failures = [episode.failure for episode in self.episodes if episode.failure is not None]
        if failures:
            found.append(
                f"the simulator itself failed in {len(failures)} of {len(self.episodes)} episodes, "
                f"which count as not solved, first in {failures[0]}"
            )
        at_once = sum(episode.success and episode.steps == 1 for episode in self.episodes)
        if at_once:
            found.append(
                f"{at_once} of {len(self.episodes)} episodes were solved by their first step: "
                f"check "
                "that the success criterion is not met from the start"
            )
        check = self.camera_check
        if check.mode == "off":
            found.append("the cameras were not compared with those of training")
        for start in check.starts:
            if not start.verdict.matches:
                found.append(f"cameras at seed {start.seed}: {start.verdict.line()}")
        return found

    def eval_info(self, videos: list[Path], seconds: float) -> dict[str, Any]:
        """Return the same as the content of LeRobot's `eval_info.json`, for tools that read it.

        Args:
            videos: that were kept.
            seconds: that all episodes took together.

        Source: huggingface/lerobot@7427f318:src/lerobot/scripts/lerobot_eval.py, eval_policy_all.
        """
        group = self.env.partition("/")[0]
        rewards = [episode.reward for episode in self.episodes]
        largest = [episode.max_reward for episode in self.episodes]
        shared = {"video_paths": [str(path) for path in videos], "predicted_video_paths": []}
        overall = {
            "avg_sum_reward": math.fsum(rewards) / len(rewards),
            "avg_max_reward": math.fsum(largest) / len(largest),
            "pc_success": 100.0 * self.success_rate,
            "n_episodes": len(rewards),
            **shared,
        }
        metrics = {
            "sum_rewards": rewards,
            "max_rewards": largest,
            "successes": [episode.success for episode in self.episodes],
            **shared,
        }
        return {
            "per_task": [{"task_group": group, "task_id": 0, "metrics": metrics}],
            "per_group": {group: overall},
            "overall": {**overall, "eval_s": seconds, "eval_ep_s": seconds / len(rewards)},
        }

    def summary(self) -> str:
        """Return two lines; see `alarms` for what makes the figures doubtful."""
        solved = sum(episode.success for episode in self.episodes)
        low, high = self.success_interval
        parts = (("render", self.render_s), ("encode", self.encode_s), ("head", self.head_s))
        times = ", ".join(f"{name} {1e3 * latency.p50:.0f} ms" for name, latency in parts)
        seeds = f"{self.episodes[0].seed}..{self.episodes[-1].seed}"
        return (
            f"{self.env}: solved {solved} of {len(self.episodes)} unseen episodes "
            f"({100 * self.success_rate:.0f} %, 95 % Wilson interval {100 * low:.0f} to "
            f"{100 * high:.0f} %), "
            f"seeds {seeds}, {self.nfe} sampling step(s), encoder {self.encoder.name}\n"
            f"median time per decision: {times}"
        )


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a success rate.

    Source: E. B. Wilson, Probable inference, JASA 22 (1927), 209-212.
    """
    z2 = NORMAL_QUANTILE**2
    rate = successes / trials
    center = (rate + z2 / (2 * trials)) / (1 + z2 / trials)
    spread = math.sqrt(rate * (1 - rate) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    half = NORMAL_QUANTILE * spread
    return max(0.0, center - half), min(1.0, center + half)
