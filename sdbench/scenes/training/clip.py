"""Trains the open_clip model behind `clip_score.scenes`, on pictures and captions with hard negatives.

Each batch holds, for every caption, the wrong captions of the other pictures, and one that differs from the right one in
a single word: without those a CLIP learns the colours of a scene and little of what has which. Both embeddings also have
to name the attributes, which the contrastive loss alone learns an order of magnitude more slowly at this batch size.
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
from sdbench.scenes.training.text import MAX_TOKENS, tokenise
from sdbench.training.loop import Schedule, fit

SCHEDULE = Schedule(steps=1500, lr=2e-3, batch=96, warmup=100, ema=0.99, seed=30)


def config(vocabulary: int) -> dict[str, object]:
    """open_clip's model configuration."""
    return {
        "embed_dim": 64,
        "vision_cfg": {"layers": (1, 2, 2, 1), "width": 8, "head_width": 16, "image_size": 64},  # OpenAI's RN family
        "text_cfg": {"context_length": MAX_TOKENS, "vocab_size": vocabulary, "width": 64, "heads": 4, "layers": 3},
    }


def train(work: Path, pool: Pool, tokens: CLIPTokenizer, schedule: Schedule = SCHEDULE, device: str = "cpu") -> CLIP:
    """Train it => the model in evaluation mode."""
    torch.manual_seed(schedule.seed)
    model = CLIP(**config(len(tokens)))
    heads = AttributeHeads(64)
    both = nn.ModuleDict({"clip": model, "heads": heads}).to(device)

    def loss(step: int) -> dict[str, Tensor]:
        rows = pool.rows(step, schedule.batch, schedule.seed)
        rng = np.random.default_rng((schedule.seed, step, 1))
        scenes = [pool.scenes[row] for row in rows]
        image = model.encode_image(pool.pixels(rows).to(device))
        captions = scenes + [one_word_wrong(scene, rng) for scene in scenes]
        text = model.encode_text(tokenise(tokens, captions).to(device))
        truth = labels([scene.layout for scene in scenes])
        return {
            "contrastive": contrastive_loss(F.normalize(image), F.normalize(text), model.logit_scale.clamp(max=4.6).exp(), scenes),
            "attributes": attribute_loss(heads(image), truth) + attribute_loss(heads(text[: len(rows)]), truth),
        }

    kept: CLIP = fit(both, loss, schedule, work / "clip")["clip"]  # type: ignore[index]  # a ModuleDict
    return kept


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, scenes: list[Scene]) -> Tensor:
    """Both directions of CLIP's loss; `text` holds the right captions, then as many wrong ones. Equal layouts are no negatives."""
    n = len(image)
    logits = scale * image @ text.T
    layouts = [hash(scene.layout) for scene in scenes]
    same = torch.tensor(np.equal.outer(layouts, layouts) & ~np.eye(n, dtype=bool), device=image.device)
    right = logits[:, :n].masked_fill(same, -torch.inf)
    target = torch.arange(n, device=image.device)
    return 0.5 * (F.cross_entropy(torch.cat([right, logits[:, n:]], 1), target) + F.cross_entropy(right.T, target))


def one_word_wrong(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one attribute, its background or its relation changed."""
    place = int(rng.integers(len(scene.things) + 1))
    if place == len(scene.things):
        if scene.relation is not None and rng.random() < 0.5:
            return Scene(scene.things, _other(RELATIONS, scene.relation, rng), scene.background)
        return Scene(scene.things, scene.relation, _other(tuple(BACKGROUNDS), scene.background, rng))
    kind, words = (("size", SIZES), ("colour", tuple(COLOURS)), ("shape", SHAPES))[rng.integers(3)]
    thing = scene.things[place]
    words_of = {"size": thing.size, "colour": thing.colour, "shape": thing.shape}
    changed = Thing(**{**words_of, kind: _other(words, words_of[kind], rng)})
    return Scene((*scene.things[:place], changed, *scene.things[place + 1 :]), scene.relation, scene.background)


def _other(words: tuple[str, ...], word: str, rng: np.random.Generator) -> str:
    rest = [other for other in words if other != word]
    return rest[rng.integers(len(rest))]


@torch.no_grad()
def picks_right(model: CLIP, pool: Pool, tokens: CLIPTokenizer) -> float:
    """Share of pictures whose own caption scores above the one with a word wrong."""
    rng = np.random.default_rng(0)
    wins = 0
    for start in range(0, pool.n, 256):
        rows = np.arange(start, min(start + 256, pool.n))
        scenes = [pool.scenes[row] for row in rows]
        image = model.encode_image(pool.pixels(rows), normalize=True)
        right, wrong = (
            model.encode_text(tokenise(tokens, texts), normalize=True) for texts in (scenes, [one_word_wrong(s, rng) for s in scenes])
        )
        wins += int(((image * right).sum(1) > (image * wrong).sum(1)).sum())
    return wins / pool.n
