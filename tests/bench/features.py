"""Which feature, and which reader of it, makes a policy that solves its task?

    python -m tests.bench.features --work DIR --tasks pick-place-v3 push-v3 --seeds 3 --jobs 2

Per task: 40 recorded demonstrations, one store per encoder; per feature and reader `--seeds`
trainings of the preset `demo`, each rolled out on the same unseen seeds in one sampling step.
Everything that is there already is kept, so that an interrupted run resumes. Prints a Markdown
table: solved episodes per training, their rate with its 95 % Wilson interval over all episodes, and
the mean validation error.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipeline.rollout.play.result import wilson_interval

VIEWS = "corner,topview,gripperPOV"
COMMANDS = "import sys; from cli.{0} import main; sys.argv[0] = '{0}'; main()"


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    encoder: str
    readers: str
    """`agent.readers`, as TOML."""


CASES = (
    Case("stand-in pooled, linear", "stand-in", '{pooled={kind="linear"}}'),
    Case("Lite0 pooled, linear", "efficientnet-lite0", '{pooled={kind="linear"}}'),
    Case("Lite0 grid, linear", "efficientnet-lite0", '{grid={kind="linear"}}'),
    Case("Lite0 grid, grid", "efficientnet-lite0", '{grid={kind="grid"}}'),
    Case("Lite0 grid, keypoints", "efficientnet-lite0", '{grid={kind="keypoints"}}'),
    Case("Lite0 grid, attention", "efficientnet-lite0", '{grid={kind="attention"}}'),
)
FEATURES = {"stand-in": "pooled", "efficientnet-lite0": "pooled,grid"}


def command(name: str, *words: object, log: Path) -> None:
    """Run one of the project's commands with one thread; its output goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-c", COMMANDS.format(name), *map(str, words)]
    with log.open("w") as file:
        subprocess.run(line, check=True, env=environment, stdout=file, stderr=file)


def prepare(work: Path, task: str, encoders: set[str]) -> None:
    """Record a task's demonstrations and embed them with some encoders."""
    recordings = work / task / "recordings"
    if not (recordings / "manifest.toml").exists():
        words = ("--env", f"metaworld/{task}", "--views", VIEWS, "--episodes", 40)
        command("data", "record", *words, "--out", recordings, log=work / task / "record.log")
    for encoder in sorted(encoders):
        store = work / task / f"{encoder}.zarr"
        if not (store / "COMPLETE.json").exists():
            words = ("--store", store, "--encoder", encoder, "--features", FEATURES[encoder])
            log = work / task / f"embed-{encoder}.log"
            command("embed", recordings / "manifest.toml", *words, log=log)


def train_and_roll_out(
    work: Path, task: str, case: Case, seed: int, *, settings: list[str], episodes: int
) -> None:
    """Train one policy, and roll it out, unless its result is there."""
    run = folder(work, task, case, seed)
    if (run / "rollout/result.json").exists():
        return
    words: list[object] = [work / task / f"{case.encoder}.zarr", "--preset", "demo", "--out", run]
    words += ["--resume", "--set", f"seed={seed}", "--set", f"agent.readers={case.readers}"]
    for setting in settings:
        words += ["--set", setting]
    command("train", *words, log=run.with_suffix(".train.log"))
    words = [run, "--env", f"metaworld/{task}", "--episodes", episodes, "--videos", "none"]
    command("rollout", *words, "--out", run / "rollout", log=run.with_suffix(".rollout.log"))


def folder(work: Path, task: str, case: Case, seed: int) -> Path:
    """Return where a training is kept."""
    return work / task / "runs" / f"{case.name.replace(', ', '-').replace(' ', '-')}-{seed}"


def row(work: Path, task: str, case: Case, seeds: int) -> str:
    """Return a table's row of the trainings that are done."""
    solved, total, errors = [], 0, []
    for seed in range(seeds):
        path = folder(work, task, case, seed) / "rollout/result.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        solved.append(sum(episode["success"] for episode in result["episodes"]))
        total += len(result["episodes"])
        log = (folder(work, task, case, seed) / "log.jsonl").read_text().splitlines()
        entries = [json.loads(line) for line in log]
        errors += [entry["val_error"] for entry in entries if "val_error" in entry][-1:]
    if not total:
        return f"| {task} | {case.name} | - | - | - |"
    low, high = (100 * bound for bound in wilson_interval(sum(solved), total))
    rate = 100 * sum(solved) / total
    return (
        f"| {task} | {case.name} | {', '.join(map(str, solved))} of {total // len(solved)} | "
        f"{rate:.0f} % ({low:.0f} to {high:.0f}) | {sum(errors) / len(errors):.3f} |"
    )


def main() -> None:
    """Prepare, train, roll out, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--cases", default="", help="part of the names of the cases to run")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    arguments = parser.parse_args()
    cases = [case for case in CASES if arguments.cases in case.name]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        encoders = {case.encoder for case in cases}
        list(pool.map(lambda task: prepare(arguments.work, task, encoders), arguments.tasks))
        jobs = [
            pool.submit(
                train_and_roll_out,
                arguments.work,
                task,
                case,
                seed,
                settings=arguments.settings,
                episodes=arguments.episodes,
            )
            for seed in range(arguments.seeds)
            for task in arguments.tasks
            for case in cases
        ]
        for job in jobs:
            job.result()
    print("| task | feature, reader | solved per training | rate (95 %) | validation error |")
    print("|---|---|---|---|---|")
    for task in arguments.tasks:
        for case in cases:
            print(row(arguments.work, task, case, arguments.seeds))


if __name__ == "__main__":
    main()
