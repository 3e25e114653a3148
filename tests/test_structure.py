"""The house's own rules: import direction, one owner a library, empty packages, file sizes."""

import ast
from collections import Counter
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import cli
import pipeline
import policy

ROOT = Path(__file__).parents[1]

MAY_IMPORT = {"policy": set(), "pipeline": {"policy"}, "cli": {"pipeline", "policy"}}
PIPELINE_ROOMS = [
    "storage",
    "datasets",
    "features",
    "training",
    "rollout",
]  # each imports those to its left
OWNERS = {
    "transformers": {
        "policy/encoders/minilm.py",
        "policy/encoders/siglip2.py",
        "policy/encoders/siglip2_text.py",
        "policy/encoders/stand_in.py",
    },
    "huggingface_hub": {"policy/encoders/siglip2.py", "pipeline/datasets/hub.py"},
    "PIL": {
        "policy/images.py",
        "pipeline/datasets/compressed.py",
        "pipeline/datasets/check/scan.py",
        "pipeline/rollout/play/episode.py",
    },
    "pyarrow": {"pipeline/datasets/lerobot/table.py"},
    "av": {"pipeline/datasets/video.py", "pipeline/rollout/play/video.py"},
    "diffusers": {"policy/objectives/diffusion.py"},
    "zarr": {
        "pipeline/features/store/layout.py",
        "pipeline/features/store/object_arrays.py",
        "pipeline/features/store/feature_store.py",
        "pipeline/datasets/replay_buffer/reader.py",
    },
    "obstore": {
        "pipeline/storage/objects/requests.py",
        "pipeline/storage/objects/folder.py",
        "pipeline/features/store/object_arrays.py",
    },
    "h5py": {
        "pipeline/datasets/hdf5/aloha.py",
        "pipeline/datasets/hdf5/recording.py",
        "pipeline/datasets/hdf5/files.py",
        "pipeline/datasets/hdf5/reader.py",
        "pipeline/datasets/hdf5/robomimic.py",
    },
    "mujoco": {
        "pipeline/rollout/envs/rendering.py",
        "pipeline/rollout/envs/metaworld.py",
        "pipeline/rollout/envs/planar.py",
    },
    "libero": {"pipeline/rollout/envs/libero_tasks.py", "pipeline/rollout/envs/libero.py"},
    "robosuite": {"pipeline/rollout/envs/libero.py"},
    "dm_control": {"pipeline/rollout/envs/aloha.py"},
    "gym_aloha": {"pipeline/rollout/envs/aloha.py"},
    "gymnasium": {"pipeline/rollout/envs/gymnasium_env.py"},
    "metaworld": {"pipeline/rollout/envs/metaworld.py"},
    "safetensors": {"pipeline/training/run/checkpoint.py", "pipeline/training/run/folder.py"},
    "jinja2": {"pipeline/rollout/report/page.py"},
    "ray": {"pipeline/features/encode/ray_pool.py"},
    "msgpack": {"pipeline/rollout/serve/wire.py"},
    "websockets": {"pipeline/rollout/serve/sockets.py"},
    "typer": {path.relative_to(ROOT).as_posix() for path in (ROOT / "cli").glob("*.py")},
}
FORBIDDEN = {"pickle", "dill", "cloudpickle", "joblib", "torchvision"}
SOURCES = sorted(path for room in MAY_IMPORT for path in (ROOT / room).rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in SOURCES]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imported_modules(path: Path, *, at_run_time: bool = False) -> set[str]:
    """List what a file imports, in functions too; `at_run_time` leaves out `if TYPE_CHECKING`."""
    modules, nodes = set(), [tree(path)]
    while nodes:
        node = nodes.pop()
        is_for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not (at_run_time and is_for_types):
            nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules |= {node.module or "", *(f"{node.module}.{a.name}" for a in node.names)}
    return modules


def numbers(path: Path) -> set[object]:
    """List the literal numbers of a file."""
    return {node.value for node in ast.walk(tree(path)) if isinstance(node, ast.Constant)}


def test_files_import_only_what_their_room_allows():
    """`cli -> pipeline -> policy`, and each heavy library in the files that own it."""
    offenders = []
    for name in NAMES:
        room = name.split("/")[0]
        roots = {module.split(".")[0] for module in imported_modules(ROOT / name)}
        upward = (roots & {*MAY_IMPORT, "tests"}) - MAY_IMPORT[room] - {room}
        stray = {library for library in roots & OWNERS.keys() if name not in OWNERS[library]}
        offenders += [f"{name}: {found}" for found in upward | stray | (roots & FORBIDDEN)]
    assert not offenders


def test_pipeline_rooms_import_leftwards_only():
    offenders = []
    for name in NAMES:
        root, room, *_ = name.split("/")
        if root == "pipeline" and room in PIPELINE_ROOMS:
            right = PIPELINE_ROOMS[PIPELINE_ROOMS.index(room) + 1 :]
            modules = imported_modules(ROOT / name)
            wrong = {m for m in modules if m.startswith(tuple(f"pipeline.{r}" for r in right))}
            offenders += [f"{name}: {module}" for module in wrong]
    assert not offenders


def test_pipeline_names_no_encoder():
    """Which encoder, and how wide its features are, is data."""
    encoders = ("policy.encoders.siglip2", "policy.encoders.efficientnet", "policy.encoders.stand")
    offenders = [
        name
        for name in NAMES
        if name.startswith(("pipeline/", "cli/"))
        and (
            any(module.startswith(encoders) for module in imported_modules(ROOT / name))
            or 768 in numbers(ROOT / name)
        )
    ]
    assert not offenders


def test_the_vocabulary_needs_no_torch():
    assert not {"torch"} & {m.split(".")[0] for m in imported_modules(ROOT / "policy/spec.py")}


def test_no_module_imports_itself_by_way_of_others():
    """A circle, be it hidden in a function, means that one cannot be read without the other."""
    modules = {name.removesuffix(".py").replace("/", "."): ROOT / name for name in NAMES}
    imports = {
        module: imported_modules(path, at_run_time=True) & modules.keys()
        for module, path in modules.items()
    }
    TopologicalSorter(imports).prepare()  # CycleError says which


def test_packages_import_nothing():
    assert not [n for n in NAMES if n.endswith("__init__.py") and (ROOT / n).read_text()]


@pytest.mark.parametrize("package", [policy, pipeline, cli])
def test_packages_are_the_top_level_ones(package):
    """`tests/policy` must never be what `import policy` finds."""
    assert Path(package.__file__).parent == ROOT / package.__name__


def test_no_file_is_longer_than_400_lines():
    assert not [name for name in NAMES if len((ROOT / name).read_text().splitlines()) > 400]


def test_no_folder_has_more_than_14_modules():
    modules = Counter(Path(name).parent for name in NAMES if not name.endswith("__init__.py"))
    assert not {folder: count for folder, count in modules.items() if count > 14}
