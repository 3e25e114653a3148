"""The frozen text half of SigLIP2, from the Hugging Face hub or a local checkpoint.

An instruction's vector is `pooler_output`, the last position's, not L2-normalized: what
`SiglipModel.get_text_features` returns. The model was trained on lower-case text without BOS, that
ends in EOS and is padded on the right to 64 tokens, and without an attention mask; the tokenizers
that transformers picks do each of it differently, so that ids are made here.

Source: google/siglip2-base-patch16-256 (tokenizer.json, config.json); google-research/big_vision,
`tok(length=64, model="gemma", bos="no", eos="sticky")`, big_vision#186 and #187.
"""

import hashlib
import logging
import unicodedata
from typing import Final

import torch
from jaxtyping import Float32, Int64
from tokenizers import Tokenizer
from torch import Tensor
from transformers import SiglipTextModel

from policy.encoders.registry import TEXT_ENCODERS
from policy.encoders.siglip2 import load_half, open_checkpoint
from policy.encoders.text import TextEncoder, TextSettings, plain_words
from policy.errors import EncoderLoadError

NUM_TOKENS: Final = 64  # of every text
PAD, EOS, BOS = 0, 1, 2  # ids of Gemma's tokenizer; SiglipTextConfig's own defaults are others
NORMALIZATION: Final = "NFC, lower case, single spaces, EOS, padded on the right to 64"
VISION_PART: Final = ("vision_model.", "logit_scale", "logit_bias")  # of a full checkpoint

logger = logging.getLogger(__name__)


class Siglip2TextEncoder(TextEncoder):
    """SigLIP2's text network without gradients."""

    def token_ids(self, instruction: str) -> Int64[Tensor, "1 64"]:
        """Return the ids of an instruction, EOS included, padded on the right."""
        words = plain_words(unicodedata.normalize("NFC", instruction))
        ids = self._tokenizer.encode(words, add_special_tokens=False).ids
        if len(ids) >= NUM_TOKENS:
            logger.warning("instruction of more than %d tokens is cut: %r", NUM_TOKENS - 1, words)
        ids = [*ids[: NUM_TOKENS - 1], EOS]
        return torch.tensor([ids + [PAD] * (NUM_TOKENS - len(ids))])

    def _forward(self, instruction: str) -> Float32[Tensor, " d"]:
        vector: Tensor = self._network(input_ids=self.token_ids(instruction)).pooler_output[0]
        return vector


def load(settings: TextSettings) -> Siglip2TextEncoder:
    """Load a checkpoint from the hub or from a folder; see `load_text_encoder`."""
    folder, name, revision = open_checkpoint(settings, "tokenizer.json", TEXT_ENCODERS)
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers' own have no common class
        raise EncoderLoadError(f"{folder}: cannot load a SigLIP2 text network ({error})") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    network = load_half(SiglipTextModel, folder, "text", other=VISION_PART)
    special = [tokenizer.id_to_token(number) for number in (PAD, EOS, BOS)]
    length = network.config.max_position_embeddings
    if special != ["<pad>", "<eos>", "<bos>"] or length != NUM_TOKENS:
        raise EncoderLoadError(
            f"{path}: expected <pad>, <eos>, <bos> as tokens 0 to 2 and {NUM_TOKENS} positions, "
            f"found {special} and {length}; use the files of a SigLIP2 checkpoint"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Siglip2TextEncoder(
        network,
        tokenizer,
        name=name,
        revision=revision,
        width=network.config.projection_size,
        source="pooler_output of the last of 64 positions",
        contract={"tokenizer": digest, "normalization": NORMALIZATION},
    )
