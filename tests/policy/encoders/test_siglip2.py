"""The frozen tower, against transformers' own classes on checkpoints saved here."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._inductor.utils import fresh_cache
from transformers import (
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from policy.encoders.stand_in import NAME as STAND_IN
from policy.encoders.stand_in import build_stand_in
from policy.errors import EncoderLoadError, FeatureRangeError
from tests.tower import WIDTH, load, load_fitted, tiny_tower

# sha256 of the stand-in's weights: whatever library version draws or holds them.
STAND_IN_WEIGHTS = "d22be88fa9a1107a16ef01c7dfe925f905ca182787d911a1e047bd08748e8dcb"
NUM_FULL_LAYERS = 12

COMPILER = shutil.which(os.environ.get("CXX", "g++"))


def save_checkpoint(
    folder: Path, *, num_layers: int, image_size: int = 256, width: int = 768
) -> Path:
    """Save a whole two-tower checkpoint with random weights, as the hub's repository holds one."""
    torch.manual_seed(0)
    config = SiglipConfig(
        vision_config=SiglipVisionConfig(
            num_hidden_layers=num_layers, image_size=image_size, hidden_size=width
        ).to_dict(),
        text_config=SiglipTextConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=1,
            projection_size=width,
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
    """A narrow one; another test has the real width."""
    return save_checkpoint(tmp_path_factory.mktemp("siglip2"), num_layers=1, width=WIDTH)


def random_images(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, 256, 256, 3), np.uint8)


def upstream_outputs(folder: Path, images: np.ndarray):
    """transformers' own processor and vision model, float32."""
    processor = SiglipImageProcessorPil.from_pretrained(folder)
    network = SiglipVisionModel.from_pretrained(folder, dtype=torch.float32).eval()
    pixels = processor(images=list(images), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return network(pixel_values=pixels, output_hidden_states=True)


def test_pooled_equals_the_upstream_library(checkpoint):
    images = random_images(6)
    encoder = load(str(checkpoint), compute_dtype="float32")

    pooled = encoder.encode(images)["pooled"]

    expected = upstream_outputs(checkpoint, images).pooler_output
    # float16 keeps 11 bits: half a unit in the last place is 2^-11 of the value.
    np.testing.assert_allclose(pooled.astype(np.float32), expected, rtol=2**-11, atol=1e-5)
    assert encoder.identity.revision == "local"
    assert encoder.identity.pretrained


def test_full_size_checkpoint_loads_and_encodes(tmp_path):
    folder = save_checkpoint(tmp_path / "full", num_layers=NUM_FULL_LAYERS)
    images = random_images(1)
    encoder = load(str(folder), 1, compute_dtype="float32")
    expected = upstream_outputs(folder, images).pooler_output
    pooled = encoder.encode(images)["pooled"].astype(np.float32)
    np.testing.assert_allclose(pooled, expected, rtol=2**-11, atol=1e-4)


@pytest.mark.parametrize(("feature", "layer"), [("grid", None), ("grid@1", 1)])
def test_a_grid_is_the_principal_components_of_averaged_patch_tokens(tmp_path, feature, layer):
    """Against numpy's singular values of the upstream library's tokens."""
    folder = save_checkpoint(tmp_path / "two", num_layers=2, width=WIDTH)
    sample, images = random_images(12, seed=1), random_images(3)
    encoder = load(str(folder), features=(feature,), compute_dtype="float32")
    assert encoder.unfitted == (feature,)
    encoder.fit(sample)

    def patches(images: np.ndarray) -> np.ndarray:
        outputs = upstream_outputs(folder, images)
        tokens = outputs.last_hidden_state if layer is None else outputs.hidden_states[layer]
        rows = tokens.numpy().reshape(len(images), 8, 2, 8, 2, WIDTH)
        return rows.mean(axis=(2, 4))

    known = patches(sample).reshape(-1, WIDTH).astype(np.float64)
    mean = known.mean(axis=0)
    _, _, components = np.linalg.svd(known - mean, full_matrices=False)
    components = components[:64]
    largest = np.abs(components).argmax(axis=1)
    components *= np.sign(components[np.arange(64), largest])[:, None]
    expected = (patches(images) - mean) @ components.T

    grid = encoder.encode(images)[feature]
    assert grid.shape == (3, 8, 8, 64)
    # Close eigenvalues may mix; what the components span, and the leading ones, may not.
    np.testing.assert_allclose(grid[..., :4], expected[..., :4], atol=0.02 * expected.std())
    np.testing.assert_allclose(
        np.linalg.norm(grid.astype(np.float32), axis=-1),
        np.linalg.norm(expected, axis=-1),
        rtol=5e-3,
    )


def test_stand_in_is_the_same_on_every_machine():
    digest = hashlib.sha256()
    for name, tensor in sorted(build_stand_in().named_parameters()):
        digest.update(name.encode())
        digest.update(tensor.detach().numpy().tobytes())
    assert digest.hexdigest() == STAND_IN_WEIGHTS


def relative_l2(found: np.ndarray, expected: np.ndarray) -> float:
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return (np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)).max()


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # torch's compiler
@pytest.mark.skipif(COMPILER is None, reason="torch.compile needs a C++ compiler")
@torch._inductor.config.patch(compile_threads=1)  # no processes for few kernels
def test_a_compiled_encoder_is_close_and_repeats_its_own_bits(monkeypatch):
    """In float32, whose differences vanish in float16's; bfloat16 rounds at other places."""
    # The processor's own word is enough; else a program is compiled per instruction set, for 12 s.
    monkeypatch.setattr(torch._inductor.config.cpp, "vec_isa_ok", True)
    images = random_images(9)
    eager = load(tiny_tower(), compute_dtype="float32")
    compiled = load(tiny_tower(), compute_dtype="float32", compiled=True)
    features = compiled.encode(images)["pooled"]

    assert compiled.environment.compiled
    assert compiled.identity == eager.identity
    assert relative_l2(features, eager.encode(images)["pooled"]) < 2**-11
    assert np.array_equal(compiled.encode(images[3:6])["pooled"], features[3:6])
    again = load(tiny_tower(), compute_dtype="float32", compiled=True)
    assert np.array_equal(again.encode(images)["pooled"], features)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # torch's compiler
def test_an_encoder_that_does_not_compile_is_an_error_and_never_eager(monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    torch._dynamo.reset()
    encoder = load("efficientnet-lite0", compute_dtype="float32", compiled=True)
    unable = r"^efficientnet-lite0: the encoder cannot be compiled .* \(.*no-such-compiler"
    with fresh_cache(), pytest.raises(EncoderLoadError, match=unable):
        encoder.encode(random_images(1))


def test_features_beyond_float16_are_refused():
    encoder = load(STAND_IN, compute_dtype="float32")
    with torch.no_grad():
        dict(encoder._network.named_parameters())["head.mlp.fc2.bias"].fill_(1e5)
    with pytest.raises(FeatureRangeError, match="65504"):
        encoder.encode(random_images(1))


def test_other_weights_dtype_or_basis_have_another_fingerprint(checkpoint):
    made = [
        load(str(checkpoint), compute_dtype="float32"),
        load(str(checkpoint), compute_dtype="bfloat16"),
        load(tiny_tower()),
        load_fitted(tiny_tower(), features=("grid",)),
        load_fitted(tiny_tower(), features=("pooled", "grid")),
    ]
    other = load(tiny_tower(), features=("grid",))
    other.fit(random_images(12, seed=2))
    prints = {encoder.identity.fingerprint for encoder in [*made, other]}
    assert len(prints) == 6


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
        load(str(folder))


def test_missing_tensors_are_refused(checkpoint, tmp_path):
    folder = _copy(checkpoint, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 2  # one more than the weights have
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderLoadError, match="missing"):
        load(str(folder))


def test_tensors_without_a_place_in_the_network_are_refused(checkpoint, tmp_path):
    folder = _copy(checkpoint, tmp_path)
    path = folder / "model.safetensors"
    further = {"vision_model.encoder.layers.1.layer_norm1.bias": torch.ones(WIDTH)}
    save_file(load_file(path) | further, path, {"format": "pt"})
    with pytest.raises(EncoderLoadError, match=r"encoder.layers.1.layer_norm1.bias"):
        load(str(folder))


def test_a_network_without_its_pooling_head_is_refused(checkpoint, tmp_path):
    folder = _copy(checkpoint, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["vision_use_head"] = False
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderLoadError, match="head"):
        load(str(folder))


def test_weights_in_pickle_are_refused(checkpoint, tmp_path):
    folder = _copy(checkpoint, tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(EncoderLoadError, match="cannot load a SigLIP2 vision network"):
        load(str(folder))


def test_a_network_of_another_image_size_is_refused(tmp_path):
    folder = save_checkpoint(tmp_path / "small", num_layers=1, image_size=224, width=WIDTH)
    with pytest.raises(EncoderLoadError, match="224"):
        load(str(folder))


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
        load(str(folder))


def test_a_file_or_a_useless_revision_is_refused(checkpoint):
    with pytest.raises(EncoderLoadError, match="found a file"):
        load(str(checkpoint / "config.json"))
    for name in (STAND_IN, str(checkpoint)):
        with pytest.raises(EncoderLoadError, match="expected no revision"):
            load(name, revision="0" * 40)


@pytest.mark.usefixtures("no_hub")
def test_a_hub_repository_needs_a_pinned_revision():
    for name, revision in (("someone/else", "main"), ("someone/else@main", None)):
        with pytest.raises(EncoderLoadError, match="40 digits, not 'main'"):
            load(name, revision=revision)
    for name, revision in (("someone/else", "0" * 40), (f"someone/else@{'0' * 40}", None)):
        with pytest.raises(EncoderLoadError, match="someone/else@00000000: cannot be fetched"):
            load(name, revision=revision)


def test_an_unknown_encoder_or_feature_is_answered_with_those_there_are():
    with pytest.raises(EncoderLoadError, match=r"built-in encoder \(efficientnet-lite0, stand-in"):
        load("efficientnet-lite9")
    with pytest.raises(
        EncoderLoadError, match=r"expected each of pooled, grid, grid@1.* found 'gird'"
    ):
        load(STAND_IN, features=("gird",))


def _copy(checkpoint: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder
