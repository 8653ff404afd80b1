"""Text encoders on disk, their token ids, and a tokenizer for pipelines with random weights.

Since transformers 5.6 a newly built `CLIPTextModel` names its tensors without the prefix `text_model.`, which every
published checkpoint has and other readers expect; `save_text_encoder` writes the published names.
"""

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

PREFIX = "text_model."
PROJECTION = "text_projection.weight"
START, END = "<|startoftext|>", "<|endoftext|>"


def save_text_encoder(encoder: CLIPTextModel | CLIPTextModelWithProjection, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` to `folder`, with tensors named as in checkpoints on the Hub."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder.config.architectures = [type(encoder).__name__]
    encoder.config.save_pretrained(folder)
    tensors = {hub_key(key): tensor.detach().cpu().contiguous() for key, tensor in encoder.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def hub_key(key: str) -> str:
    """A tensor's name in checkpoints on the Hub, whatever the installed transformers calls it."""
    return key if key.startswith(PREFIX) or key == PROJECTION else PREFIX + key


def token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """The token ids of captions, N x tokens, padded or cut to the length that the text encoder takes."""
    ids: Tensor = tokenizer(
        list(captions), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def letter_tokenizer(*, vocabulary: int, tokens: int) -> CLIPTokenizer:
    """Build a CLIP tokenizer without merges, one token a letter.

    The ids agree with those of the real tokenizer: bytes are 0..255, bytes that end a word 256..511, and start and end of
    text the last two of the vocabulary.

    Args:
        vocabulary: size of the text encoder's embedding, at least 514.
        tokens: length to pad or cut prompts to.
    """
    letters = sorted(ByteLevel.alphabet())  # the order of CLIP's vocabulary
    ids = {letter: number for number, letter in enumerate([*letters, *(f"{letter}</w>" for letter in letters)])}
    ids |= {START: vocabulary - 2, END: vocabulary - 1}
    return CLIPTokenizer(vocab=ids, merges=[], model_max_length=tokens)
