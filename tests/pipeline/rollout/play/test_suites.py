"""Suites: every environment of them is rolled out and recorded, as it is alone."""

import json

import metaworld
import pytest

from pipeline.datasets.manifest.model import load_manifest
from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.errors import EnvError
from pipeline.rollout.envs.metaworld import SUITES
from pipeline.rollout.envs.registry import envs_of
from pipeline.rollout.play.loop import RolloutConfig, roll_out
from pipeline.rollout.play.record import RecordConfig, record_dataset
from pipeline.rollout.play.tasks import Queue
from tests.pipeline.rollout.envs.meta_world_run import write_run
from tests.tower import tiny_tower

ENVS = ("metaworld/reach-v3", "metaworld/drawer-open-v3")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("several"))


def test_a_process_plays_one_environment_to_its_end_and_then_one_that_no_other_plays():
    queue = Queue({"a": [1, 2], "b": [0, 1], "c": []})
    queue.add("b", 2)
    assert (len(queue), queue.has_several_envs) == (5, True)
    assert queue.next(None) == ("b", 0)
    assert queue.next(None) == ("a", 1)
    assert queue.next("b") == ("b", 1)
    assert queue.next("a") == ("a", 2)
    assert queue.next("a") == ("b", 2)  # helps
    assert queue.next("b") is None


def test_the_names_of_suites_are_those_of_their_benchmarks(monkeypatch):
    monkeypatch.setattr(metaworld, "_make_tasks", lambda *_, **__: [])  # 50 goals for each of them
    tasks = metaworld.MT10().train_classes
    assert envs_of(["metaworld/mt10"]) == tuple(f"metaworld/{task}" for task in tasks)
    assert len(envs_of(["metaworld/mt50", "metaworld/reach-v3"])) == 50
    standard, swapped = (
        envs_of([f"libero/{suite}"]) for suite in ("libero_object", "libero_object_swap")
    )
    assert len(standard) == 10
    assert swapped == tuple(name.replace("object/", "object_swap/", 1) for name in standard)


@pytest.mark.parametrize(
    ("suite", "pattern"),
    [
        (
            "libero/libero_objct",
            r"a name out of 83, found 'libero_objct'; did you mean libero/libero_obj",
        ),
        ("libero/libero_object_env", r"found no .*; `libero-pro list`"),
    ],
)
def test_an_unknown_or_incomplete_suite_is_refused(suite, pattern):
    with pytest.raises(EnvError, match=pattern):
        envs_of([suite])


@pytest.mark.sim
def test_several_environments_give_the_episodes_that_each_gives_alone(run, tmp_path, monkeypatch):
    monkeypatch.setitem(SUITES, "mt10", [env.partition("/")[2] for env in ENVS])
    settings = {"episodes": 2, "max_steps": 9, "encoder": tiny_tower(), "render_size": 64}
    results = {}
    for name, envs, num_envs in (
        *((env, (env,), 1) for env in ENVS),
        ("one by one", ("metaworld/mt10",), 1),
        ("at once", ENVS, 2),
    ):
        out = tmp_path / "out" / name
        config = RolloutConfig(run=run, envs=envs, out=out, num_envs=num_envs, **settings)
        results[name] = roll_out(config)
    expected = [
        episode.model_copy(update={"task": env})
        for env in ENVS
        for episode in results[env].episodes
    ]
    assert [*results["one by one"].episodes] == [*results["at once"].episodes] == expected
    assert len({episode.reward for episode in expected}) == 4
    assert [suite.name for suite in results["one by one"].suites] == ["metaworld"]

    out = tmp_path / "out" / "at once"
    videos = sorted(str(path.relative_to(out)) for path in out.rglob("*.mp4"))
    assert videos == [f"videos/metaworld-{env[10:]}/seed_100000.mp4" for env in sorted(ENVS)]
    found = json.loads((out / "eval_info.json").read_text())
    assert found["overall"]["n_episodes"] == found["per_group"]["metaworld"]["n_episodes"] == 4
    for index, (env, task) in enumerate(zip(ENVS, found["per_task"], strict=True)):
        assert (task["task_group"], task["task_id"]) == ("metaworld", index)
        alone = json.loads((tmp_path / "out" / env / "eval_info.json").read_text())
        (alone_task,) = alone["per_task"]
        assert task["metrics"]["sum_rewards"] == alone_task["metrics"]["sum_rewards"]
        assert len(task["metrics"]["video_paths"]) == 1


@pytest.mark.sim
def test_an_environment_that_does_not_fit_the_policy_is_refused_before_anything_is_written(
    run, tmp_path
):
    envs = ("metaworld/reach-v3", "planar/two-ways")
    config = RolloutConfig(run=run, envs=envs, out=tmp_path / "out", encoder=tiny_tower())
    with pytest.raises(EnvError, match=r"planar/two-ways: .*views"):
        roll_out(config)
    assert not list((tmp_path / "out").glob("[!.]*"))


@pytest.mark.sim
def test_a_suite_is_recorded_under_one_manifest_and_resumes_to_the_same_bytes(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(SUITES, "mt10", SUITES["mt10"][:3])
    config = RecordConfig(
        env="metaworld/mt10", views=("corner",), episodes=1, out=tmp_path, render_size=64
    )
    report = record_dataset(config)
    assert (report.episodes, report.recorded) == (3, 3)
    files = sorted(tmp_path.glob("*/*.hdf5"))
    envs = envs_of([config.env])
    assert sorted(f"metaworld/{path.parent.name}" for path in files) == sorted(envs)
    missing = files[1].read_bytes()
    files[1].unlink()
    assert record_dataset(config).recorded == 1
    assert files[1].read_bytes() == missing
    assert record_dataset(config).recorded == 0

    reader = ManifestReader(load_manifest(report.manifest))
    tasks = [reader.label(episode).task for episode in range(3)]
    reader.close()
    assert tasks == [env[len("metaworld/") : -len("-v3")].replace("-", " ") for env in envs]
