"""Trains the open_clip model of `clip_score.scenes`, on images and captions with hard negatives.

For every image, a batch holds the captions of the other images, and one that differs from the right caption in a single
word: without these, a CLIP learns which colours a scene has, but hardly which thing has which. Both embeddings also have to
predict the attributes, because the contrastive loss alone learns an order of magnitude more slowly at this batch size.
"""

from pathlib import Path

import numpy as np
import torch
from open_clip.model import CLIP
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from sdbench.scenes.attributes import AttributeHeads, attribute_loss, labels
from sdbench.scenes.grammar import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, Scene, Thing
from sdbench.scenes.training.pool import Pool
from sdbench.scenes.training.text import MAX_TOKENS, tokenize_captions
from sdbench.training.loop import Schedule, fit

SCHEDULE = Schedule(steps=1500, lr=2e-3, batch=96, warmup=100, ema=0.99, seed=30)


def config(vocabulary: int) -> dict[str, object]:
    """The configuration of the open_clip model, for `vocabulary` tokens."""
    return {
        "embed_dim": 64,
        "vision_cfg": {"layers": (1, 2, 2, 1), "width": 8, "head_width": 16, "image_size": 64},  # OpenAI's RN family
        "text_cfg": {"context_length": MAX_TOKENS, "vocab_size": vocabulary, "width": 64, "heads": 4, "layers": 3},
    }


def train(work: Path, pool: Pool, tokens: CLIPTokenizer, device: str) -> CLIP:
    """Train the model and return it in evaluation mode."""
    torch.manual_seed(SCHEDULE.seed)
    model = CLIP(**config(len(tokens)))
    heads = AttributeHeads(64)
    both = nn.ModuleDict({"clip": model, "heads": heads}).to(device)

    def loss(step: int) -> dict[str, Tensor]:
        rows = pool.rows(step, SCHEDULE.batch, SCHEDULE.seed)
        rng = np.random.default_rng((SCHEDULE.seed, step, 1))
        scenes = [pool.scenes[row] for row in rows]
        image = model.encode_image(pool.pixels(rows).to(device))
        captions = scenes + [change_one_word(scene, rng) for scene in scenes]
        text = model.encode_text(tokenize_captions(tokens, captions).to(device))
        truth = labels([scene.layout for scene in scenes])
        return {
            "contrastive": contrastive_loss(F.normalize(image), F.normalize(text), model.logit_scale.clamp(max=4.6).exp(), scenes),
            "attributes": attribute_loss(heads(image), truth) + attribute_loss(heads(text[: len(rows)]), truth),
        }

    return fit(both, loss, SCHEDULE, work / "clip")["clip"]


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, scenes: list[Scene]) -> Tensor:
    """CLIP's loss (arXiv 2103.00020), averaged over both directions; images with equal layouts are no negatives of each other.

    Args:
        image: N x d, normalised.
        text: 2N x d, normalised: the right captions, then as many wrong ones, which are negatives of every image.
    """
    n = len(image)
    logits = scale * image @ text.T
    layouts = [hash(scene.layout) for scene in scenes]
    same = torch.tensor(np.equal.outer(layouts, layouts) & ~np.eye(n, dtype=bool), device=image.device)
    right = logits[:, :n].masked_fill(same, -torch.inf)
    target = torch.arange(n, device=image.device)
    return 0.5 * (F.cross_entropy(torch.cat([right, logits[:, n:]], 1), target) + F.cross_entropy(right.T, target))


def change_one_word(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one attribute, its background or its relation changed at random."""
    place = int(rng.integers(len(scene.things) + 1))
    if place == len(scene.things):
        if scene.relation is not None and rng.random() < 0.5:
            return Scene(scene.things, _pick_other(RELATIONS, scene.relation, rng), scene.background)
        return Scene(scene.things, scene.relation, _pick_other(tuple(BACKGROUNDS), scene.background, rng))
    kind, words = (("size", SIZES), ("colour", tuple(COLOURS)), ("shape", SHAPES))[rng.integers(3)]
    thing = scene.things[place]
    attributes = {"size": thing.size, "colour": thing.colour, "shape": thing.shape}
    changed = Thing(**{**attributes, kind: _pick_other(words, attributes[kind], rng)})
    return Scene((*scene.things[:place], changed, *scene.things[place + 1 :]), scene.relation, scene.background)


def _pick_other(words: tuple[str, ...], word: str, rng: np.random.Generator) -> str:
    rest = [other for other in words if other != word]
    return rest[rng.integers(len(rest))]


@torch.no_grad()
def picks_right(model: CLIP, pool: Pool, tokens: CLIPTokenizer) -> float:
    """The share of images whose own caption scores higher than one with a wrong word."""
    rng = np.random.default_rng(0)
    wins = 0
    for start in range(0, pool.n, 256):
        rows = np.arange(start, min(start + 256, pool.n))
        scenes = [pool.scenes[row] for row in rows]
        image = model.encode_image(pool.pixels(rows), normalize=True)
        right, wrong = (
            model.encode_text(tokenize_captions(tokens, texts), normalize=True)
            for texts in (scenes, [change_one_word(s, rng) for s in scenes])
        )
        wins += int(((image * right).sum(1) > (image * wrong).sum(1)).sum())
    return wins / pool.n
