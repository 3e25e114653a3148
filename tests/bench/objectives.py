"""Which objective solves the demo task? The same store, head, seeds and steps for each.

    python -m tests.bench.objectives demo/stand-in/features.zarr --out demo/objectives

Every objective trains with the `demo` preset, then rolls out on 20 unseen seeds with each of its
numbers of passes. Prints a Markdown table: success with its 95 % Wilson interval, and the median
latency of the head in a decision, measured first, in turn and without the simulator. A training
that is there already is not repeated; `--latency` measures the latencies alone.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.features.store.feature_store import FeatureStore
from pipeline.rollout.play.loop import RolloutConfig, roll_out
from pipeline.training.config import TrainConfig, with_settings
from pipeline.training.presets import preset_config
from pipeline.training.session import train
from policy.agent import VLAAgent
from policy.spec import AgentSpec
from tests.bench.head_speed import decide, median_s

REPEATS = 15  # decisions timed of each objective


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
    Contestant("... by jumps", ('agent.objective.kind="improved_meanflow_jump"',), (1,)),
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


def configuration(contestant: Contestant, settings: list[str]) -> TrainConfig:
    """Return the demo's configuration with a contestant's objective."""
    return with_settings(preset_config("demo"), [*settings, *contestant.settings])


def latencies_s(store: Path, settings: list[str]) -> dict[tuple[str, int], float]:
    """Return the median time of the head in a decision; weights do not change it."""
    opened = FeatureStore.open(store)
    steps = opened.read_steps()
    spec = AgentSpec(
        view_names=opened.attributes.view_names,
        feature_shapes={spec.name: spec.shape for spec in opened.encoder.features},
        state_dim=steps.state.shape[1],
        action_dim=steps.action.shape[1],
    )
    cases = [(contestant, passes) for contestant in CONTESTANTS for passes in contestant.passes]
    calls = [
        decide(VLAAgent(configuration(contestant, settings).agent, spec), passes)
        for contestant, passes in cases
    ]
    medians = median_s(calls, REPEATS)
    return {
        (contestant.name, passes): median
        for (contestant, passes), median in zip(cases, medians, strict=True)
    }


def main() -> None:
    """Time, train, roll out, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--env", default="metaworld/drawer-open-v3")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    latency = latencies_s(arguments.store, arguments.settings)
    if arguments.latency:
        for (name, passes), median in latency.items():
            print(f"{name}, {passes}: {1e3 * median:.1f} ms")
        return
    print("| objective | passes | solved | 95 % interval | head |")
    print("|---|---|---|---|---|", flush=True)
    for place, contestant in enumerate(CONTESTANTS):
        run = arguments.out / f"{place}"
        config = configuration(contestant, arguments.settings)
        train([arguments.store], run, config, resume=True)
        for passes in contestant.passes:
            result = roll_out(
                RolloutConfig(
                    run=run,
                    envs=(arguments.env,),
                    out=run / "rollouts" / str(passes),
                    episodes=arguments.episodes,
                    nfe=passes,
                )
            )
            solved = sum(episode.success for episode in result.episodes)
            low, high = (100 * bound for bound in result.success_interval)
            print(
                f"| {contestant.name} | {passes} | {solved} of {arguments.episodes} | {low:.0f} to "
                f"{high:.0f} % | {1e3 * latency[contestant.name, passes]:.1f} ms |",
                flush=True,
            )


if __name__ == "__main__":
    main()
