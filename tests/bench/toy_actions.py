"""Can one step draw from a spread of actions? Energy distances on two toys, and a picture.

    python -m tests.bench.toy_actions --picture toy_actions.png
    python -m tests.bench.toy_actions --steps 4000 --batch 256 --only jumps DDPM

Data: actions in the plane, as two modes or as a ring. Every objective trains the same trunk from
the same seed for the same number of steps on the same batches. Reported is the energy distance
between drawn and fresh actions, 2 E|X-Y| - E|X-X'| - E|Y-Y'| (Szekely and Rizzo 2013), which is
zero only for equal distributions; the mean of three seeds, with the smallest and the largest.
`floor` is what fresh data itself gets. "Its velocity" integrates the velocity head instead of
asking for the average: what a perfect one-step map of that velocity would draw.
"""

import argparse
import math
import multiprocessing
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from policy.network.ema import WeightAverage
from policy.network.head import ActionHead, HeadConfig
from policy.objectives.base import Batch, Objective, bind
from policy.objectives.deterministic import RegressionConfig
from policy.objectives.diffusion import DiffusionConfig
from policy.objectives.flow_matching import FlowMatchingConfig, jump_to_data
from policy.objectives.improved_meanflow_jump import ImprovedMeanFlowJumpConfig
from policy.objectives.meanflow import ImprovedMeanFlowConfig
from policy.objectives.registry import ObjectiveConfig, build_objective

SEEDS = (0, 1, 2)
WARMUP = 100
LEARNING_RATE = 1e-3
HEAD = HeadConfig(n_emb=64, n_layer=3, pred_horizon=1)
NUM_DRAWN = 65_536
PIECE = 1_024  # drawn at a time, so that a pass stays in the processor's cache
LINES = 64  # that the energy distance looks along
VELOCITY_PASSES = 100


Job = tuple[str, int, int]  # toy, number of the contestant, seed
Drawn = dict[str, Tensor]  # what a contestant drew, by how


@dataclass(frozen=True)
class Contestant:
    """An objective, and the numbers of passes it is judged with."""

    name: str
    config: ObjectiveConfig
    passes: tuple[int, ...]


EVERY_TIME = ImprovedMeanFlowConfig(
    tangent="velocity_head", weight_power=0.0, anchored_share=0.5, anchored_noise_share=0.0
)
CONTESTANTS = (
    Contestant("improved MeanFlow", ImprovedMeanFlowConfig(), (1, 2, 4)),
    Contestant("... times of demo", ImprovedMeanFlowConfig(time_logit_mean=1.0), (1, 4)),
    Contestant("... not anchored", ImprovedMeanFlowConfig(anchored_share=0.0), (1, 2, 4)),
    Contestant("... at every t", EVERY_TIME, (1, 2, 4)),
    Contestant("... by jumps", ImprovedMeanFlowJumpConfig(), (1,)),
    Contestant("flow matching", FlowMatchingConfig(), (1, 10)),
    Contestant("regression", RegressionConfig(), (1,)),
    Contestant("DDPM", DiffusionConfig(sampler="ddpm"), (100,)),
)


def two_modes(count: int, generator: torch.Generator) -> Tensor:
    """Left or right of an obstacle, with a little spread; [count, 2] in [-1, 1]."""
    side = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
    return 0.05 * torch.randn(count, 2, generator=generator) + torch.stack(
        [0.7 * side, torch.zeros(count)], dim=1
    )


def ring(count: int, generator: torch.Generator) -> Tensor:
    """Any direction, one distance; [count, 2] in [-1, 1]."""
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    radius = 0.7 + 0.05 * torch.randn(count, generator=generator)
    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)


TOYS = {"two modes": two_modes, "ring": ring}


def energy_distance(first: Tensor, second: Tensor) -> float:
    """Return the unbiased estimate between two samples of points, [n, 2] and [m, 2].

    A length in the plane is pi/2 times its mean shadow on a line (Huang and Huo, arXiv 1707.04602),
    and on a line the distances of all pairs follow from the ranks: n log n instead of n squared.
    With 64 lines it agrees with the sum over all pairs within 2e-4 of itself.
    """
    n, m = len(first), len(second)
    angles = math.pi * torch.arange(LINES).double() / LINES
    total = 0.0
    for line in torch.stack([angles.cos(), angles.sin()], dim=1):
        on_line = first.double() @ line, second.double() @ line
        within = [float(total_distance(shadows)) for shadows in on_line]
        between = (float(total_distance(torch.cat(on_line))) - sum(within)) / 2
        total += 2 * between / (n * m) - within[0] / (n * (n - 1)) - within[1] / (m * (m - 1))
    return math.pi / 2 * total / LINES


def total_distance(values: Tensor) -> Tensor:
    """Sum the distances of all ordered pairs of numbers, [n]."""
    ranks = torch.arange(len(values), dtype=values.dtype)
    return 2 * (values.sort().values * (2 * ranks - len(values) + 1)).sum()


def run(job: Job, steps: int, batch: int) -> tuple[Job, Drawn]:
    """Train one contestant on one toy with one seed; return what it draws."""
    toy, index, seed = job
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    objective = build_objective(CONTESTANTS[index].config)
    head = ActionHead(
        HEAD, cond_dim=1, num_cond_tokens=1, action_dim=2, num_outputs=objective.num_outputs
    )
    optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2,
    )
    data, noise = (torch.Generator().manual_seed(2 * seed + part) for part in (0, 1))
    cond, valid = torch.zeros(batch, 1, 1), torch.ones(batch, 1, dtype=torch.bool)
    average = WeightAverage(head)
    teacher = average.mirror(head)
    for step in range(steps):
        actions = TOYS[toy](batch, data)[:, None]
        target_network = None
        if objective.is_taught:
            with torch.no_grad():
                target_network = bind(teacher, teacher.encode_condition(cond))
        given = Batch(actions, valid, head.encode_condition(cond), noise, target_network)
        loss = objective.loss(head, given)
        optimizer.zero_grad(set_to_none=True)
        loss.value.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update(head, step)
    head.load_state_dict(average.averaged)
    return job, draw(objective, head, CONTESTANTS[index].passes)


@torch.no_grad()
def draw(objective: Objective, head: ActionHead, passes: tuple[int, ...]) -> Drawn:
    """Draw with each number of passes, and along the velocity head where there is one."""
    network = bind(head, head.encode_condition(torch.zeros(PIECE, 1, 1)))

    def pieces(draws: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(9)
        for _ in range(NUM_DRAWN // PIECE):
            yield torch.randn(PIECE, draws, 1, 2, generator=generator)

    drawn = {}
    for number in passes:
        noise = pieces(objective.num_noise_draws(number))
        sampled = [objective.sample(network, piece, number)[:, 0] for piece in noise]
        drawn[described(number)] = torch.cat(sampled)
    if objective.num_outputs == 2:

        def velocity(z: Tensor, t: Tensor, h: Tensor) -> Tensor:
            return network(z, t, t)[..., 2:]  # at the spans of a one-step policy's items

        way = f"its velocity, {described(VELOCITY_PASSES)}"
        walked = [jump_to_data(velocity, piece[:, 0], VELOCITY_PASSES)[:, 0] for piece in pieces(1)]
        drawn[way] = torch.cat(walked)
    return drawn


def described(passes: int) -> str:
    """Name a number of passes."""
    return f"{passes} pass" if passes == 1 else f"{passes} passes"


def table(drawn: dict[Job, Drawn]) -> None:
    """Print the energy distances, in thousandths."""
    for toy, sample in TOYS.items():
        fresh = [sample(NUM_DRAWN, torch.Generator().manual_seed(100 + s)) for s in SEEDS]
        other = [sample(NUM_DRAWN, torch.Generator().manual_seed(200 + s)) for s in SEEDS]
        floor = [energy_distance(x, y) for x, y in zip(fresh, other, strict=True)]
        print(f"{toy}: energy distance / 1000 (floor {1e3 * sum(map(abs, floor)) / 3:.2f})")
        for index, contestant in enumerate(CONTESTANTS):
            for way in drawn.get((toy, index, SEEDS[0]), ()):
                distances = [
                    1e3 * energy_distance(drawn[toy, index, seed][way], fresh[place])
                    for place, seed in enumerate(SEEDS)
                ]
                print(
                    f"  {contestant.name:20} {way:26} {sum(distances) / 3:8.2f}"
                    f"  ({min(distances):.2f} to {max(distances):.2f})"
                )


def draw_picture(drawn: dict[Job, Drawn], path: Path) -> None:
    """Draw what the first seed's contestants drew, beside the data."""
    import matplotlib.pyplot as plt

    columns = [
        (contestant.name, index, contestant.passes[0])
        for index, contestant in enumerate(CONTESTANTS)
        if any(job[1] == index for job in drawn)
    ]
    figure, axes = plt.subplots(
        len(TOYS), len(columns) + 1, figsize=(1.9 * (len(columns) + 1), 4.2), squeeze=False
    )
    for row, (toy, sample) in zip(axes, TOYS.items(), strict=True):
        shown = [("data", sample(NUM_DRAWN, torch.Generator().manual_seed(100)))]
        for name, index, passes in columns:
            title = f"{name}, {passes}".replace("improved MeanFlow", "iMF").replace("...", "iMF")
            shown.append((title, drawn[toy, index, SEEDS[0]][described(passes)]))
        for axis, (title, points) in zip(row, shown, strict=True):
            axis.scatter(*points[:1_500].T, s=1, alpha=0.4, linewidths=0)
            axis.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal", xticks=[], yticks=[])
            axis.set_title(title, fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train everything, print the table, draw the picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--only", nargs="+", help="contestants, by a part of their names")
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    arguments = parser.parse_args()
    asked = arguments.only or [""]
    indices = [i for i, held in enumerate(CONTESTANTS) if any(part in held.name for part in asked)]
    jobs = [(toy, index, seed) for seed in SEEDS for toy in TOYS for index in indices]
    train = partial(run, steps=arguments.steps, batch=arguments.batch)
    started = time.monotonic()
    drawn = {}
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        for job, samples in pool.imap_unordered(train, jobs):
            drawn[job] = samples
            print(f"{len(drawn)} of {len(jobs)}", file=sys.stderr, flush=True)
    minutes = (time.monotonic() - started) / 60
    budget = f"{arguments.steps} steps of {arguments.batch} items"
    print(f"{len(jobs)} trainings of {budget} in {minutes:.1f} min")
    table(drawn)
    if arguments.picture:
        draw_picture(drawn, arguments.picture)


if __name__ == "__main__":
    main()
