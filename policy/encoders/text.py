"""What every frozen text encoder is: instructions in, a vector of each out.

Each instruction has a forward pass of its own, so that its vector does not depend on the others.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from policy.encoders.base import hash_weights
from policy.errors import AgentMismatchError, FeatureRangeError
from policy.spec import INSTRUCTION, EncoderIdentity, FeatureSpec


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """Which text encoder to load; fields as in `EncoderSettings`."""

    name: str
    revision: str | None = None


class TextEncoder(ABC):
    """A frozen encoder of instructions; load one with `policy.encoders.registry.load_text_encoder`.

    It runs on the CPU in float32: there are few instructions, and each is encoded once.
    """

    def __init__(
        self,
        network: nn.Module,
        tokenizer: Any,
        *,
        name: str,
        revision: str,
        width: int,
        source: str,
        contract: Mapping[str, str],
    ):
        """Freeze `network`, of float32 weights, behind a `tokenizers.Tokenizer`.

        Name and revision as in `EncoderIdentity`; `source` says which output a vector of `width`
        is, and `contract` what decides it in addition to the weights.
        """
        self._network: Any = network.eval()
        self._tokenizer = tokenizer
        feature = FeatureSpec(
            name=INSTRUCTION, shape=(width,), per="instruction", dtype="float32", fingerprint=source
        )
        self.identity: Final = EncoderIdentity(
            name=name,
            revision=revision,
            pretrained=True,
            compute_dtype="float32",
            weights=hash_weights(network.state_dict(), contract),
            features=(feature,),
        )

    @abstractmethod
    def _forward(self, instruction: str) -> Float32[Tensor, " d"]:
        """Return the vector of one instruction."""

    @torch.inference_mode()
    def encode(self, instructions: Sequence[str]) -> Float32[np.ndarray, "n d"]:
        """Encode instructions, each on its own; one without words is the zero vector."""
        (width,) = self.identity.features[0].shape
        vectors = np.zeros((len(instructions), width), np.float32)
        for row, instruction in enumerate(instructions):
            if instruction.strip():
                vectors[row] = self._forward(instruction).numpy()
        if not np.isfinite(vectors).all():
            raise FeatureRangeError(
                f"{self.identity.name}: an instruction's vector is not finite; the weights are "
                "damaged"
            )
        return vectors


def plain_words(instruction: str) -> str:
    """Return an instruction in lower case and with single spaces, to compare it with others."""
    return " ".join(instruction.lower().split())


def another_instruction(known: Sequence[str], own: str) -> str:
    """Return the known instruction after `own` or the first other one, else AgentMismatchError."""
    words = [plain_words(instruction) for instruction in known]
    start = words.index(plain_words(own)) + 1 if plain_words(own) in words else 0
    for instruction in [*known[start:], *known]:
        if plain_words(instruction) != plain_words(own):
            return instruction
    raise AgentMismatchError(
        f"expected a policy trained with other instructions than {own!r}, found "
        f"{len(known)} in its training; train one on several tasks with --preset multitask"
    )


class KnownInstructions:
    """The instructions that a policy was trained on, and a text encoder for any other one."""

    def __init__(self, vectors: Mapping[str, np.ndarray], load: Callable[[], TextEncoder]):
        """Keep the vector of each instruction; `load` is called when another one comes."""
        self._vectors = {plain_words(words): vector for words, vector in vectors.items()}
        self._load = load
        self._encoder: TextEncoder | None = None

    def knows(self, instruction: str) -> bool:
        """Whether the policy was trained on this instruction, but for case and spaces."""
        return plain_words(instruction) in self._vectors

    def vector(self, instruction: str) -> Float32[np.ndarray, " d"]:
        """Return the cached vector of an instruction, or one that is encoded now.

        Raises:
            EncoderLoadError, EncoderMismatchError: the text encoder of the training is not here.
        """
        words = plain_words(instruction)
        vector = self._vectors.get(words)
        if vector is None and words:
            self._encoder = self._encoder or self._load()
            vector = self._encoder.encode([instruction])[0]
        return np.zeros_like(next(iter(self._vectors.values()))) if vector is None else vector
