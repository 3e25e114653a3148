"""Which feature, which objective makes a policy that solves its task?

    python -m tests.bench.policies features --work DIR --envs metaworld/push-v3
    python -m tests.bench.policies objectives --work DIR --envs metaworld/mt10 --episodes 50

Per environment: recorded demonstrations, one store per encoder; per row of the table
`--seeds` trainings of the preset `demo`, each rolled out on the same unseen seeds. Everything that
is there already is kept, so that an interrupted run resumes; so is a rollout's number of episodes.
Prints a Markdown table: the solved episodes of all trainings per environment, the mean of the
environments' rates with its 95 % interval, and against the first row the p-value of McNemar's exact
test over the same environment, training and episode. `--plot` draws these means. To choose on some
environments and report on others, name them: what is done is not done again.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.rollout.envs.registry import envs_of
from pipeline.rollout.play.loop import RolloutConfig, roll_out
from pipeline.rollout.play.result import mean_interval
from pipeline.rollout.report.comparison import PairedOutcome
from pipeline.training.config import with_settings
from pipeline.training.presets import preset_config
from pipeline.training.session import train

VIEWS = {"metaworld": "corner,topview,gripperPOV", "planar": "top,front,side"}
COMMANDS = "import sys; from cli.{0} import main; sys.argv[0] = '{0}'; main()"
LITE0 = "efficientnet-lite0"
FEATURES = {"stand-in": "pooled", LITE0: "pooled,grid"}
DEMONSTRATIONS = {"metaworld": 40, "planar": 200}
OBJECTIVE = "agent.objective."
Outcomes = dict[tuple[str, int, int], bool]
"""Whether an episode was solved, by environment, training seed and episode seed."""


@dataclass(frozen=True)
class Row:
    """One policy of a table; its name is also that of its folder."""

    name: str
    settings: tuple[str, ...]
    """Settings beside the preset's."""
    encoder: str = LITE0
    nfe: int | None = None
    trained_as: str | None = None
    """Name of the row whose training this one rolls out."""


def feature(name: str, encoder: str = LITE0) -> Row:
    """Return a row of the table of features."""
    return Row(f"{encoder} {name}", (f"agent.readers={{{name}={{}}}}",), encoder)


def objective(name: str, *settings: str) -> Row:
    """Return a row of the table of objectives, with settings of the preset's objective."""
    return Row(name, tuple(OBJECTIVE + setting for setting in settings))


AT_EVERY_T = "anchored_share=0.5", "anchored_noise_share=0"
SQUARED = 'tangent="velocity_head"', "weight_power=0"
DEFAULT = objective("improved MeanFlow")
TABLES = {
    "features": (feature("grid"), feature("pooled"), feature("pooled", "stand-in")),
    "objectives": (
        DEFAULT,
        objective("improved MeanFlow, times of the paper", "time_logit_mean=-0.4"),
        objective("improved MeanFlow, half at every t", *AT_EVERY_T),
        objective("improved MeanFlow, half at every t, squared", *AT_EVERY_T, *SQUARED),
        objective("improved MeanFlow by jumps", 'kind="improved_meanflow_jump"'),
        objective("regression", 'kind="regression"'),
        objective("flow matching", 'kind="flow_matching"'),
        objective("MIP", 'kind="mip"'),
    ),
    "settings": (
        DEFAULT,
        Row("learning rate 3e-4", ("optimizer.learning_rate=3e-4",)),
        Row("learning rate 2e-3", ("optimizer.learning_rate=2e-3",)),
        Row("two observation steps", ("agent.obs_horizon=2",)),
        Row("4 executed steps", ("agent.num_action_steps=4",)),
        Row("16 executed steps", ("agent.num_action_steps=16",)),
        Row("two evaluations", DEFAULT.settings, nfe=2, trained_as=DEFAULT.name),
        Row("bfloat16", ('compute_dtype="bfloat16"',)),
    ),
}


def command(name: str, *words: object, log: Path) -> None:
    """Run one of the project's commands; its output goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    line = [sys.executable, "-c", COMMANDS.format(name), *map(str, words)]
    with log.open("w") as file:
        subprocess.run(line, check=True, stdout=file, stderr=file)


def prepare(work: Path, env: str, encoders: set[str]) -> None:
    """Record an environment's demonstrations and embed them with some encoders."""
    recordings = work / env / "recordings"
    if not (recordings / "manifest.toml").exists():
        simulator = env.partition("/")[0]
        words = ("--env", env, "--views", VIEWS[simulator], "--episodes", DEMONSTRATIONS[simulator])
        command("data", "record", *words, "--out", recordings, log=work / env / "record.log")
    for encoder in sorted(encoders):
        store = work / env / f"{encoder}.zarr"
        if not (store / "COMPLETE.json").exists():
            words = ("--store", store, "--encoder", encoder, "--features", FEATURES[encoder])
            log = work / env / f"embed-{encoder}.log"
            command("embed", recordings / "manifest.toml", *words, log=log)


def play(work: Path, env: str, row: Row, seed: int, *, settings: list[str], episodes: int) -> None:
    """Train one policy, and roll it out, unless its result is there."""
    run, rollout = folders(work, env, row, seed)
    if (rollout / "result.json").exists():
        return
    torch.set_num_threads(1)
    config = with_settings(preset_config("demo"), [f"seed={seed}", *row.settings, *settings])
    train([work / env / f"{row.encoder}.zarr"], run, config, resume=True)
    roll_out(
        RolloutConfig(
            run=run, envs=(env,), out=rollout, episodes=episodes, nfe=row.nfe, videos="none"
        )
    )


def folders(work: Path, env: str, row: Row, seed: int) -> tuple[Path, Path]:
    """Return where a training and its rollout are kept."""
    name = (row.trained_as or row.name).replace(", ", "-").replace(" ", "-")
    run = work / env / "runs" / f"{name}-{seed}"
    return run, run / f"rollout-{row.nfe or 'own'}"


def outcomes(work: Path, envs: list[str], row: Row, seeds: range) -> Outcomes:
    """Return the episodes that are done."""
    found = {}
    for env in envs:
        for seed in seeds:
            path = folders(work, env, row, seed)[1] / "result.json"
            if path.exists():
                for episode in json.loads(path.read_text())["episodes"]:
                    found[env, seed, episode["seed"]] = bool(episode["success"])
    return found


def counts_of(found: Outcomes, envs: list[str]) -> list[tuple[int, int]]:
    """Return the solved episodes of every environment, and all of its episodes."""
    counts = []
    for env in envs:
        solved = [success for (name, _, _), success in found.items() if name == env]
        counts.append((sum(solved), len(solved)))
    return counts


def mean_of(counts: list[tuple[int, int]]) -> tuple[float, float, float]:
    """Return the mean of the environments' rates and the ends of its 95 % interval, in percent."""
    low, high = mean_interval(counts)
    mean = sum(solved / trials for solved, trials in counts) / len(counts)
    return 100 * mean, 100 * low, 100 * high


def draw_plot(rows: list[Row], found: list[Outcomes], envs: list[str], path: Path) -> None:
    """Draw the means of the rows that are done, with their intervals."""
    import matplotlib.pyplot as plt

    counts = {row.name: counts_of(one, envs) for row, one in zip(rows, found, strict=True)}
    done = {name: held for name, held in counts.items() if all(trials for _, trials in held)}
    figure, axis = plt.subplots(figsize=(7, 1 + 0.35 * len(done)))
    for place, held in enumerate(done.values()):
        mean, low, high = mean_of(held)
        axis.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", capsize=3)
        axis.annotate(f"{mean:.0f} %", (mean, place), (0, 6), textcoords="offset points")
    axis.set_yticks(range(len(done)), [*done])
    axis.set_ylim(len(done) - 0.5, -0.5)
    axis.set(xlim=(0, 100), xlabel=f"solved, mean of {len(envs)} environments, 95 % interval (%)")
    axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def line(row: Row, envs: list[str], found: Outcomes, reference: Outcomes) -> str:
    """Return a row of the table; `reference` are the outcomes of the first row."""
    counts = counts_of(found, envs)
    if not all(trials for _, trials in counts):
        return f"| {row.name} | " + " | ".join(f"{a} of {b}" for a, b in counts) + " | | |"
    mean, low, high = mean_of(counts)
    cells = [row.name, *(f"{solved} of {trials}" for solved, trials in counts)]
    cells.append(f"{mean:.0f} % ({low:.0f} to {high:.0f})")
    p = PairedOutcome.of(found, reference).p_value
    return f"| {' | '.join([*cells, '' if found is reference else f'{p:.3f}'])} |"


def main() -> None:
    """Prepare, train, roll out, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--envs", nargs="+", required=True, help="environments and suites")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=20, help="of each rollout")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rows", default="", help="part of the names of the rows to run")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--plot", type=Path, help="PNG to write")
    parser.add_argument("--print", action="store_true", help="only the table of what is done")
    arguments = parser.parse_args()
    rows = [row for row in TABLES[arguments.table] if arguments.rows in row.name]
    work, envs = arguments.work, [*envs_of(arguments.envs)]
    if not arguments.print:
        spawned = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(arguments.jobs, mp_context=spawned) as pool:
            encoders = {row.encoder for row in rows}
            stores = [pool.submit(prepare, work, env, encoders) for env in envs]
            for store in stores:
                store.result()
            rolled_out = {"settings": arguments.settings, "episodes": arguments.episodes}
            jobs = [
                pool.submit(play, work, env, row, seed, **rolled_out)
                for seed in range(arguments.seeds)
                for env in envs
                for row in rows
            ]
            for job in jobs:
                job.result()
    found = [outcomes(work, envs, row, range(arguments.seeds)) for row in rows]
    print(f"| policy | {' | '.join(envs)} | mean (95 %) | p |")
    print("|---" * (len(envs) + 3) + "|")
    for row, solved in zip(rows, found, strict=True):
        print(line(row, envs, solved, found[0]))
    if arguments.plot:
        draw_plot(rows, found, envs, arguments.plot)


if __name__ == "__main__":
    main()
