"""Trains the two text encoders of the `scenes` pipelines, and the tokenizer that they share.

Each learns to predict the layout from its end-of-text embedding: the things in the order of the layout, not of the words
("a ring right of a star" puts the star first). Its hidden states then hold what the UNet needs.
"""

import json
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from sdbench.models.architectures import PARTS
from sdbench.models.text_encoders import END, START, token_ids
from sdbench.scenes.attributes import AttributeHeads, attribute_loss, labels
from sdbench.scenes.grammar import Scene, scene_at
from sdbench.training.loop import Schedule, fit

MAX_TOKENS = PARTS["scenes"]["text_encoder"]["max_position_embeddings"]
SCHEDULE = Schedule(steps=1000, lr=2e-3, batch=256, warmup=100)


def train_tokenizer(folder: Path) -> CLIPTokenizer:
    """Train a CLIP tokenizer whose byte-pair merges make one token of every word of the grammar; save it to `folder` and return it."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator((scene_at(index).caption for index in range(2000)), trainer)
    with tempfile.TemporaryDirectory() as temporary:
        bpe.model.save(temporary)
        words = json.loads((Path(temporary) / "vocab.json").read_text(encoding="utf-8"))
        # The special tokens come last, as in CLIP: open_clip finds the end of the text by its highest token id.
        # The trainer numbers the letters at word ends differently each time; sorted, every run makes the same tokenizer.
        ordered = sorted(words, key=lambda word: (words[word], word) if len(word.removesuffix("</w>")) > 1 else (-1, word))
        vocabulary = {word: index for index, word in enumerate([*ordered, START, END])}
        (Path(temporary) / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        tokenizer = CLIPTokenizer.from_pretrained(temporary, model_max_length=MAX_TOKENS, pad_token=END)
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def train(work: Path, name: str, tokens: CLIPTokenizer, device: str) -> CLIPTextModelWithProjection:
    """Train `text_encoder` or `text_encoder_2` and return it in evaluation mode; the first is used without its projection."""
    torch.manual_seed(SCHEDULE.seed)
    encoder = CLIPTextModelWithProjection(CLIPTextConfig(**{**PARTS["scenes"][name], **vocabulary_config(tokens)}))
    model = nn.ModuleDict({"encoder": encoder, "heads": AttributeHeads(encoder.config.projection_dim)}).to(device)

    def loss(step: int) -> dict[str, Tensor]:
        scenes = [scene_at(step * SCHEDULE.batch + row) for row in range(SCHEDULE.batch)]
        logits = model["heads"](encoder(tokenize_captions(tokens, scenes).to(device)).text_embeds)
        return {"attributes": attribute_loss(logits, labels([scene.layout for scene in scenes]))}

    fit(model, loss, SCHEDULE, work / name)
    return encoder.eval()


def vocabulary_config(tokens: CLIPTokenizer) -> dict[str, int]:
    """The fields of a text encoder's configuration that depend on the tokenizer."""
    ends = {f"{end}_token_id": getattr(tokens, f"{end}_token_id") for end in ("bos", "eos", "pad")}
    return {"vocab_size": len(tokens), **ends}


def tokenize_captions(tokens: CLIPTokenizer, scenes: list[Scene]) -> Tensor:
    """Tokenize the captions of scenes; returns N x MAX_TOKENS token ids."""
    return token_ids(tokens, [scene.caption for scene in scenes])
