"""Which objective solves the demo task? The same store, head, seeds and steps for each.

    python -m tests.bench.objectives demo/stand-in/features.zarr --out demo/objectives

Every objective trains with the `demo` preset, then rolls out on 20 unseen seeds with each of its
numbers of passes. Prints a Markdown table: success with its 95 % Wilson interval and the median
latency of the head in a decision. A training that is there already is not repeated.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.rollout.loop import RolloutConfig, roll_out
from pipeline.training.config import with_settings
from pipeline.training.presets import preset_config
from pipeline.training.trainer import train


@dataclass(frozen=True)
class Contestant:
    """An objective, its settings beside the preset's, and the passes it is judged with."""

    name: str
    settings: tuple[str, ...]
    passes: tuple[int, ...]


CONTESTANTS = (
    Contestant("improved MeanFlow", (), (1, 2, 4)),
    Contestant("... not anchored", ("agent.objective.anchored_share=0.0",), (1,)),
    Contestant("... with a velocity head", ('agent.objective.tangent="velocity_head"',), (1,)),
    Contestant("MeanFlow", ('agent.objective.kind="meanflow"',), (1,)),
    Contestant("flow matching", ('agent.objective.kind="flow_matching"',), (1, 10)),
    Contestant("diffusion, DDIM", ('agent.objective.kind="diffusion"',), (10,)),
    Contestant(
        "diffusion, DDPM",
        ('agent.objective.kind="diffusion"', 'agent.objective.sampler="ddpm"'),
        (100,),
    ),
    Contestant("regression", ('agent.objective.kind="regression"',), (1,)),
    Contestant("MIP", ('agent.objective.kind="mip"',), (2,)),
)


def main() -> None:
    """Train, roll out, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--env", default="metaworld/drawer-open-v3")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", dest="settings", action="append", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| objective | passes | solved | 95 % interval | head, median |")
    print("|---|---|---|---|---|", flush=True)
    for place, contestant in enumerate(CONTESTANTS):
        run = arguments.out / f"{place}"
        settings = [*arguments.settings, *contestant.settings]
        config = with_settings(preset_config("demo"), settings)
        train(arguments.store, run, config, resume=True)
        for passes in contestant.passes:
            result = roll_out(
                RolloutConfig(
                    run=run,
                    env=arguments.env,
                    out=run / "rollouts" / str(passes),
                    episodes=arguments.episodes,
                    num_evaluations=passes,
                )
            )
            solved = sum(episode.success for episode in result.episodes)
            low, high = (100 * bound for bound in result.success_interval)
            print(
                f"| {contestant.name} | {passes} | {solved} of {arguments.episodes} | {low:.0f} to "
                f"{high:.0f} % | {1e3 * result.head_s.p50:.1f} ms |",
                flush=True,
            )


if __name__ == "__main__":
    main()
