"""The result of a rollout: episodes, success with its interval, latency; stored as JSON."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.rollout.gate.camera_check import CameraCheckResult
from policy.spec import EncoderIdentity, FrozenModel

NORMAL_QUANTILE: Final = 1.959964  # two-sided 95 % of a standard normal


class EpisodeResult(FrozenModel):
    """One episode."""

    task: str = ""
    """Its environment, in a rollout of several; else empty."""
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
    failure: str | None = None
    """Why the simulator failed after `steps` steps, in one line; the episode ended there, unsolved.
    None where it did not fail."""
    instruction: str = ""
    """The instruction; a policy without `agent.language` ignores it."""
    first_actions: tuple[tuple[float, ...], ...] = ()
    """The first decision of a policy with `agent.language`, normalized: the action range is 2."""

    @property
    def file(self) -> Path:
        """Its `episode_file`."""
        return episode_file(self.task, self.seed)


def episode_file(task: str, seed: int) -> Path:
    """Return the path of a video below `videos`, or an image below `paths`, without its ending."""
    return Path(task.replace("/", "-")) / f"seed_{seed}"


class SuccessRate(FrozenModel):
    """How often one environment, or the environments of one suite, were solved."""

    name: str
    """The environment; or the suite, which is the environment's name without its last part."""
    episodes: int
    solved: int
    success_rate: float
    """Share of solved episodes, in [0, 1]; of a suite, the mean of its environments' shares."""
    success_interval: tuple[float, float]
    """95 % interval: Wilson's; of a suite, `mean_interval`'s."""

    @property
    def task(self) -> str:
        """Last part of the environment's name; variants of one task share it."""
        return self.name.rpartition("/")[2]

    @property
    def suite(self) -> str:
        """The environment's name without its last part."""
        return self.name.rpartition("/")[0]

    @classmethod
    def of(cls, name: str, outcomes: Sequence[Sequence[bool]]) -> "SuccessRate":
        """Sum up the outcomes of the episodes of each environment."""
        counts = [(sum(each), len(each)) for each in outcomes]
        return cls(
            name=name,
            episodes=sum(trials for _, trials in counts),
            solved=sum(solved for solved, _ in counts),
            success_rate=math.fsum(solved / trials for solved, trials in counts) / len(counts),
            success_interval=mean_interval(counts),
        )


class Latency(FrozenModel):
    """Duration of one decision in seconds, over all decisions of a rollout."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: list[float]) -> "Latency":
        """Summarize measured durations, at least one."""
        p50, p95, p99 = np.percentile(seconds, [50, 95, 99])
        return cls(p50=float(p50), p95=float(p95), p99=float(p99))


class RolloutResult(FrozenModel, extra="ignore"):
    """A rollout, as stored in `result.json`; older files have further fields."""

    env: str
    """The environment's name; names of several and of suites, as they were asked for."""
    instruction_source: str = "own"
    """Each environment's `own` instruction, one of an `other` task, `empty`, or these words."""
    run: str
    """Folder name of the training run."""
    checkpoint_step: int
    """Optimizer steps behind the averaged weights."""
    nfe: int
    """Number of function evaluations per decision."""
    max_steps: int
    """Control steps after which an episode counts as failed; the most where suites differ."""
    encoder: EncoderIdentity
    dataset: str
    store_digest: str
    code_version: str
    render_size: int
    """Width and height in pixels of rendered images, before they were resized for the encoder."""
    num_envs: int
    """Environments that ran at once; changes no episode, only times."""
    episodes: tuple[EpisodeResult, ...]
    """By environment, then in the order of their seeds."""
    success_rate: float
    """Share of solved episodes, in [0, 1]; of several environments, the mean of their shares."""
    success_interval: tuple[float, float]
    """95 % interval of the success rate: Wilson's; of several environments, `mean_interval`'s."""
    tasks: tuple[SuccessRate, ...] = ()
    """Each environment of several; else empty."""
    suites: tuple[SuccessRate, ...] = ()
    """Each suite of several environments; else empty."""
    render_s: Latency
    """Rendering the observation steps of one decision."""
    encode_s: Latency
    """Encoding their views."""
    head_s: Latency
    """Condition and action head."""
    camera_check: CameraCheckResult
    """Whether the cameras showed what they showed in training."""

    def alarms(self) -> list[str]:
        """Return one sentence per reason to doubt the figures; a report prints them in red."""
        found = []
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
                "check that the success criterion is not met from the start"
            )
        check = self.camera_check
        if check.mode == "off" or any(start.verdict.unchecked for start in check.starts):
            found.append("the cameras were not compared with those of training")
        apart = [start for start in check.starts if not start.verdict.matches]
        for task, count in Counter(start.task for start in apart).items():
            first = next(start for start in apart if start.task == task)
            where = f"cameras of {task}" if task else "cameras"
            found.append(
                f"{where} at seed {first.seed}, the first of {count}: {first.verdict.line()}"
            )
        return found

    def eval_info(self, out: Path, seconds: float) -> dict[str, Any]:
        """Return the same as the content of LeRobot's `eval_info.json`, for tools that read it.

        `out` is the folder with the videos, `seconds` what all episodes took together.

        Source: huggingface/lerobot@7427f318:src/lerobot/scripts/lerobot_eval.py, eval_policy_all.
        """
        groups: dict[str, dict[str, list[EpisodeResult]]] = {}  # by suite, then by environment
        for episode in self.episodes:
            suite = (episode.task or self.env).rpartition("/")[0]
            groups.setdefault(suite, {}).setdefault(episode.task, []).append(episode)

        def videos(episodes: Sequence[EpisodeResult]) -> dict[str, list[str]]:
            paths = [(out / "videos" / episode.file).with_suffix(".mp4") for episode in episodes]
            kept = [str(path) for path in paths if path.exists()]
            return {"video_paths": kept, "predicted_video_paths": []}

        def averages(episodes: Sequence[EpisodeResult]) -> dict[str, Any]:
            count = len(episodes)
            return {
                "avg_sum_reward": math.fsum(episode.reward for episode in episodes) / count,
                "avg_max_reward": math.fsum(episode.max_reward for episode in episodes) / count,
                "pc_success": 100.0 * sum(episode.success for episode in episodes) / count,
                "n_episodes": count,
                **videos(episodes),
            }

        def metrics(episodes: Sequence[EpisodeResult]) -> dict[str, Any]:
            return {
                "sum_rewards": [episode.reward for episode in episodes],
                "max_rewards": [episode.max_reward for episode in episodes],
                "successes": [episode.success for episode in episodes],
                **videos(episodes),
            }

        return {
            "per_task": [
                {"task_group": group, "task_id": index, "metrics": metrics(episodes)}
                for group, tasks in groups.items()
                for index, episodes in enumerate(tasks.values())
            ],
            "per_group": {
                group: averages([episode for episodes in tasks.values() for episode in episodes])
                for group, tasks in groups.items()
            },
            "overall": {
                **averages(self.episodes),
                "eval_s": seconds,
                "eval_ep_s": seconds / len(self.episodes),
            },
        }

    def summary(self) -> str:
        """Return a line per environment of several, and two; see `alarms` for reasons to doubt."""
        solved = sum(episode.success for episode in self.episodes)
        low, high = self.success_interval
        interval = "interval of the mean" if self.tasks else "Wilson interval"
        parts = (("render", self.render_s), ("encode", self.encode_s), ("head", self.head_s))
        times = ", ".join(f"{name} {1e3 * latency.p50:.0f} ms" for name, latency in parts)
        seeds = f"{self.episodes[0].seed}..{self.episodes[-1].seed}"
        table = "".join(
            f"{each.name}: {each.solved} of {each.episodes}, {100 * each.success_rate:.0f} % "
            "({:.0f} to {:.0f} %)\n".format(*(100 * end for end in each.success_interval))
            for each in (*self.tasks, *self.suites)
        )
        return (
            f"{table}{self.env}: solved {solved} of {len(self.episodes)} unseen episodes "
            f"({100 * self.success_rate:.0f} %, 95 % {interval} {100 * low:.0f} to "
            f"{100 * high:.0f} %), "
            f"seeds {seeds}, {self.nfe} sampling step(s), encoder {self.encoder.name}\n"
            f"median time per decision: {times}"
        )


def success_fields(episodes: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Return the fields of a result that its episodes determine: rates, with their intervals."""
    outcomes: dict[str, list[bool]] = {}
    for episode in episodes:
        outcomes.setdefault(episode.task, []).append(episode.success)
    overall = SuccessRate.of("", list(outcomes.values()))
    tasks = [SuccessRate.of(task, [each]) for task, each in outcomes.items() if task]
    suites = dict.fromkeys(task.suite for task in tasks)
    return {
        "success_rate": overall.success_rate,
        "success_interval": overall.success_interval,
        "tasks": tuple(tasks),
        "suites": tuple(
            SuccessRate.of(suite, [outcomes[task.name] for task in tasks if task.suite == suite])
            for suite in suites
        ),
    }


def mean_interval(counts: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of some environments' success rates.

    The environments are fixed, not a sample of others; their episodes are. The distances from each
    rate to the ends of its Wilson interval are combined as standard deviations of independent
    quantities are, each side for itself. With one environment it is Wilson's interval. `counts` are
    the successes and trials of each.

    Source: G. Y. Zou, W. Huang, X. Zhang, Computational Statistics & Data Analysis 53 (2009),
    1080-1085, for a linear function of binomial proportions.
    """
    rates = [solved / trials for solved, trials in counts]
    ends = [wilson_interval(solved, trials) for solved, trials in counts]
    mean = math.fsum(rates) / len(rates)
    below = math.hypot(*(rate - low for rate, (low, _) in zip(rates, ends, strict=True)))
    above = math.hypot(*(high - rate for rate, (_, high) in zip(rates, ends, strict=True)))
    return max(0.0, mean - below / len(rates)), min(1.0, mean + above / len(rates))


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
