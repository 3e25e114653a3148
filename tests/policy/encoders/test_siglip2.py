"""The frozen tower, against transformers' own classes on checkpoints saved here."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from policy.encoders.siglip2 import STAND_IN, FrozenSiglip2, load_backbone
from policy.errors import EncoderLoadError, FeatureRangeError, FrameFormatError
from tests.tower import tiny_tower

# sha256 of the stand-in in float32: whatever library version draws or holds the weights.
STAND_IN_FLOAT32 = "111caa093384af0e89797c2f9ecd19332379fbdb3668e53af2da5a8c1c96d309"
NUM_FULL_LAYERS = 12

COMPILER = shutil.which(os.environ.get("CXX", "g++"))


def save_checkpoint(folder: Path, *, num_layers: int, image_size: int = 256) -> Path:
    """Save a whole two-tower checkpoint with random weights, as the hub's repository holds one."""
    torch.manual_seed(0)
    config = SiglipConfig(
        vision_config=SiglipVisionConfig(
            num_hidden_layers=num_layers, image_size=image_size
        ).to_dict(),
        text_config=SiglipTextConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=1,
            projection_size=768,
        ).to_dict(),
    )
    SiglipModel(config).save_pretrained(folder)
    processor = SiglipImageProcessorPil(
        size={"height": image_size, "width": image_size},
        resample=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor.save_pretrained(folder)
    path = folder / "preprocessor_config.json"
    fields = json.loads(path.read_text())
    fields |= {"do_resize": True, "do_rescale": True, "do_normalize": True}
    fields |= {"rescale_factor": 1 / 255}
    path.write_text(json.dumps(fields))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("siglip2"), num_layers=1)


@pytest.fixture(scope="module")
def stand_in():
    return load_backbone(STAND_IN)


def random_steps(num_steps: int, num_views: int = 3, seed: int = 0) -> torch.Tensor:
    pixels = np.random.default_rng(seed).integers(0, 256, (num_steps, num_views, 256, 256, 3))
    return torch.from_numpy(pixels.astype(np.uint8))


def upstream_features(folder: Path, frames: torch.Tensor) -> torch.Tensor:
    """transformers' own processor and vision model, float32, one image at a time."""
    processor = SiglipImageProcessorPil.from_pretrained(folder)
    tower = SiglipVisionModel.from_pretrained(folder, dtype=torch.float32).eval()
    features = []
    for frame in frames.flatten(0, 1).numpy():
        pixels = processor(images=frame, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            features.append(tower(pixel_values=pixels).pooler_output[0])
    return torch.stack(features).unflatten(0, frames.shape[:2])


def test_features_equal_the_upstream_library(checkpoint):
    frames = random_steps(2)
    encoder = load_backbone(str(checkpoint), compute_dtype="float32")

    features = encoder.encode_views(frames)

    expected = upstream_features(checkpoint, frames)
    # float16 keeps 11 bits: half a unit in the last place is 2^-11 of the value.
    torch.testing.assert_close(features.float(), expected, rtol=2**-11, atol=1e-5)
    assert encoder.identity.revision == "local"
    assert encoder.identity.pretrained


def test_full_size_checkpoint_loads_and_encodes(tmp_path):
    folder = save_checkpoint(tmp_path / "full", num_layers=NUM_FULL_LAYERS)
    frames = random_steps(1, num_views=1)

    encoder = load_backbone(str(folder), compute_dtype="float32")

    expected = upstream_features(folder, frames)
    torch.testing.assert_close(
        encoder.encode_views(frames).float(), expected, rtol=2**-11, atol=1e-4
    )


def test_encoder_keeps_the_contract_of_the_design(stand_in):
    assert FrozenSiglip2.dataset_image_resize_shape is None
    assert stand_in.dataset_image_resize_shape is None
    assert stand_in.eval_image_resize_shape == (256, 256)
    assert not stand_in.identity.pretrained


def test_stand_in_is_the_same_on_every_machine():
    assert load_backbone(STAND_IN, compute_dtype="float32").identity.fingerprint == STAND_IN_FLOAT32


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_a_step_has_the_same_bits_alone_and_among_others(compute_dtype):
    """What makes cached and live features equal: batching must be invisible."""
    encoder = load_backbone(STAND_IN, compute_dtype=compute_dtype)
    frames = random_steps(3)

    together = encoder.encode_views(frames)
    alone = torch.cat([encoder.encode_views(step[None]) for step in frames.flip(0)]).flip(0)

    assert torch.equal(together, alone)


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("num_views", [2, 3, 4])
def test_a_frame_has_the_same_bits_in_any_place_and_company(compute_dtype, num_views):
    """Frames of one pass may be exchanged: what lets equal frames be encoded once."""
    encoder = load_backbone(STAND_IN, compute_dtype=compute_dtype)
    steps = random_steps(num_views, num_views=num_views)
    feature = encoder.encode_views(steps)[0, 0]

    for place in range(num_views):
        moved = steps[place : place + 1].clone()
        moved[0, place] = steps[0, 0]
        assert torch.equal(encoder.encode_views(moved)[0, place], feature)


def relative_l2(found: torch.Tensor, expected: torch.Tensor) -> float:
    distance = (found.double() - expected.double()).norm(dim=-1) / expected.double().norm(dim=-1)
    return distance.max().item()


def test_eager_attention_is_another_engine_with_close_features():
    frames = random_steps(1)
    fused = load_backbone(STAND_IN, compute_dtype="float32")
    eager = load_backbone(STAND_IN, compute_dtype="float32", attention="eager")

    assert eager.engine != fused.engine
    # Some float32 rounding, then float16's: half a unit in the last place is 2^-11 of a value.
    assert relative_l2(eager.encode_views(frames), fused.encode_views(frames)) < 2**-11


# Three roundings to bfloat16 a layer may fall apart; float32's vanish in float16's.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # torch's compiler
@pytest.mark.skipif(COMPILER is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(("compute_dtype", "bound"), [("float32", 2**-11), ("bfloat16", 1e-2)])
def test_a_compiled_tower_is_close_and_repeats_its_own_bits(compute_dtype, bound):
    frames = random_steps(3)
    eager = load_backbone(tiny_tower(), compute_dtype=compute_dtype)
    compiled = load_backbone(tiny_tower(), compute_dtype=compute_dtype, compiled=True)
    features = compiled.encode_views(frames)

    assert compiled.engine.compiled
    assert compiled.identity == eager.identity
    assert relative_l2(features, eager.encode_views(frames)) < bound
    assert torch.equal(compiled.encode_views(frames[[1]]), features[[1]])
    again = load_backbone(tiny_tower(), compute_dtype=compute_dtype, compiled=True)
    assert torch.equal(again.encode_views(frames), features)


def test_a_tower_that_does_not_compile_is_an_error_and_never_eager(tmp_path):
    program = """
import sys
import torch
from policy.encoders.siglip2 import load_backbone
encoder = load_backbone(sys.argv[1], compute_dtype="float32", compiled=True)
encoder.encode_views(torch.zeros(1, 1, 256, 256, 3, dtype=torch.uint8))
"""
    without = os.environ | {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program, tiny_tower()],
        env=without,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert f"EncoderLoadError: {Path(tiny_tower()).name}: the tower does not compile here" in last
    assert "no-such-compiler" in last


def test_views_are_encoded_independently_by_one_tower(stand_in):
    frames = random_steps(1)
    permuted = frames[:, [2, 0, 1]]
    features = stand_in.encode_views(frames)

    changed = frames.clone()
    changed[:, 1] = 255 - changed[:, 1]
    features_of_changed = stand_in.encode_views(changed)

    assert torch.equal(stand_in.encode_views(permuted), features[:, [2, 0, 1]])
    assert torch.equal(features_of_changed[:, [0, 2]], features[:, [0, 2]])
    assert not torch.equal(features_of_changed[:, 1], features[:, 1])


def test_no_gradient_comes_out_of_the_tower(stand_in):
    assert not stand_in.encode_views(random_steps(1)).requires_grad


def test_frames_of_another_shape_are_refused(stand_in):
    with pytest.raises(FrameFormatError, match="want uint8"):
        FrozenSiglip2.encode_views.__wrapped__.__wrapped__(
            stand_in, torch.zeros(1, 3, 128, 128, 3, dtype=torch.uint8)
        )


def test_features_beyond_float16_are_refused():
    encoder = load_backbone(STAND_IN, compute_dtype="float32")
    with torch.no_grad():
        dict(encoder._tower.named_parameters())["head.mlp.fc2.bias"].fill_(1e5)
    with pytest.raises(FeatureRangeError, match="65504"):
        encoder.encode_views(random_steps(1))


def test_other_weights_or_dtype_have_another_fingerprint(checkpoint, stand_in):
    float32 = load_backbone(str(checkpoint), compute_dtype="float32").identity
    bfloat16 = load_backbone(str(checkpoint), compute_dtype="bfloat16").identity
    prints = {float32.fingerprint, bfloat16.fingerprint, stand_in.identity.fingerprint}
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resample", 3),
        ("size", {"height": 224, "width": 224}),
        ("image_mean", [0.48, 0.45, 0.40]),
        ("do_normalize", None),
        ("do_center_crop", True),
    ],
)
def test_preprocessing_that_drifted_is_refused(checkpoint, tmp_path, field, value):
    folder = _copy(checkpoint, tmp_path)
    path = folder / "preprocessor_config.json"
    fields = json.loads(path.read_text())
    fields[field] = value
    if value is None:
        del fields[field]  # the library would fill its own default in, silently
    path.write_text(json.dumps(fields))
    with pytest.raises(EncoderLoadError, match=rf"preprocessor_config.json: .*{field}"):
        load_backbone(str(folder))


def test_missing_tensors_are_refused(checkpoint, tmp_path):
    folder = _copy(checkpoint, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 2  # one more than the weights have
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderLoadError, match="missing"):
        load_backbone(str(folder))


def test_tensors_without_a_place_in_the_tower_are_refused(checkpoint, tmp_path):
    folder = _copy(checkpoint, tmp_path)
    path = folder / "model.safetensors"
    tensors = load_file(path) | {"vision_model.encoder.layers.1.layer_norm1.bias": torch.ones(768)}
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(EncoderLoadError, match=r"no place .* encoder.layers.1.layer_norm1.bias"):
        load_backbone(str(folder))


def test_a_tower_without_its_pooling_head_is_refused(checkpoint, tmp_path):
    folder = _copy(checkpoint, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["vision_use_head"] = False
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderLoadError, match="head"):
        load_backbone(str(folder))


def test_weights_in_pickle_are_refused(checkpoint, tmp_path):
    folder = _copy(checkpoint, tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(EncoderLoadError, match="no SigLIP2 vision tower loads"):
        load_backbone(str(folder))


def test_a_tower_of_another_image_size_is_refused(tmp_path):
    folder = save_checkpoint(tmp_path / "small", num_layers=1, image_size=224)
    with pytest.raises(EncoderLoadError, match="224"):
        load_backbone(str(folder))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", "garbage"),
        ("config.json", "[1]"),
        ("config.json", '{"model_type": "siglip", "vision_config": {"image_size": "x"}}'),
    ],
)
def test_damaged_checkpoints_are_refused(checkpoint, tmp_path, name, content):
    folder = _copy(checkpoint, tmp_path)
    (folder / name).write_text(content)
    with pytest.raises(EncoderLoadError, match=str(folder)):
        load_backbone(str(folder))


def test_a_file_or_a_useless_revision_is_refused(checkpoint):
    with pytest.raises(EncoderLoadError, match="is a file"):
        load_backbone(str(checkpoint / "config.json"))
    for name in (STAND_IN, str(checkpoint)):
        with pytest.raises(EncoderLoadError, match="it is no repository"):
            load_backbone(name, revision="0" * 40)


def test_a_hub_repository_needs_a_pinned_revision():
    with pytest.raises(EncoderLoadError, match="40-hex"):
        load_backbone("someone/else", revision="main")


def _copy(checkpoint: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder
