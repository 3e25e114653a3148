"""A whole SigLIP2 checkpoint with random weights and a small tokenizer of Gemma's layout."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import SiglipConfig, SiglipModel, SiglipTextConfig, SiglipVisionConfig

WORDS = "pick up the alphabet soup and place it in the basket PICK UP THE Open"
WIDTH = 48


@cache
def text_checkpoint(seed: int = 0) -> Path:
    """Save it as transformers does, and return its folder; the same one at every call."""
    folder = Path(mkdtemp(prefix="text"))
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([WORDS] * 4, trainer)
    # As Gemma's does unless it is told not to: BOS in front, and padding on the left.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    tokenizer.enable_padding(direction="left", length=64, pad_id=0, pad_token="<pad>")
    tokenizer.save(str(folder / "tokenizer.json"))
    sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2}
    text = SiglipTextConfig(
        vocab_size=400,
        num_attention_heads=2,
        projection_size=WIDTH,
        bos_token_id=2,
        eos_token_id=1,
        **sizes,
    )
    vision = SiglipVisionConfig(num_attention_heads=2, image_size=32, **sizes)
    torch.manual_seed(seed)
    SiglipModel(
        SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    ).save_pretrained(folder)
    return folder
