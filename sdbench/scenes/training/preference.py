"""Trains the preference model, which has PickScore's form (a `transformers` CLIP, logit scale times cosine), on pairs of scenes.

The better of two images of one caption is the one with less of a fault: blur, noise, a colour shift, a thing missing or
wrong, or the smear of an under-trained generator (what a Vega-shaped UNet predicts from noised latents after 400 steps).
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from sdbench.arrays import U8
from sdbench.disk import load_array
from sdbench.notes import progress
from sdbench.scenes.attributes import AttributeHeads, attribute_loss, labels
from sdbench.scenes.grammar import Scene
from sdbench.scenes.networks import to_pixels
from sdbench.scenes.render import render
from sdbench.scenes.training.clip import change_one_word
from sdbench.scenes.training.pool import Pool
from sdbench.scenes.training.text import MAX_TOKENS, tokenize_captions, vocabulary_config
from sdbench.scenes.training.unet import train as train_unet
from sdbench.training.diffusion import add_noise, predict
from sdbench.training.latents import LatentPool
from sdbench.training.loop import Schedule, fit

SCHEDULE = Schedule(steps=1500, lr=1.5e-3, batch=48, warmup=100, ema=0.99, seed=40)
UNDERTRAINED = Schedule(steps=400, lr=2e-3, batch=32, warmup=50, ema=0.99, seed=2)
N_SMEARED = 2048
FAULTS = ("blur", "noise", "colour", "wrong", "smear")


def config(tokens: CLIPTokenizer) -> CLIPConfig:
    """The configuration of the CLIP, for this tokenizer."""
    both = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    text = {**both, "num_hidden_layers": 3, "max_position_embeddings": MAX_TOKENS, **vocabulary_config(tokens)}
    vision = {**both, "num_hidden_layers": 4, "image_size": 64, "patch_size": 8}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)


def train(work: Path, pool: Pool, tokens: CLIPTokenizer, pipeline: Path, device: str) -> CLIPModel:
    """Train the model and return it in evaluation mode."""
    smeared = _smeared_images(work / "smears.npy", pipeline, pool, work)
    torch.manual_seed(SCHEDULE.seed)
    clip, heads = CLIPModel(config(tokens)), AttributeHeads(64)
    both = nn.ModuleDict({"clip": clip, "heads": heads}).to(device)

    def loss(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((SCHEDULE.seed, step))
        rows = rng.integers(N_SMEARED, size=SCHEDULE.batch)
        scenes = [pool.scenes[row] for row in rows]
        better, worse = draw_pairs(pool, rows, rng, smeared)
        image = clip.get_image_features(pixel_values=torch.cat([better, worse]).to(device)).pooler_output
        text = clip.get_text_features(input_ids=tokenize_captions(tokens, scenes).to(device)).pooler_output
        scores = clip.logit_scale.clamp(max=4.6).exp() * (F.normalize(text).repeat(2, 1) * F.normalize(image)).sum(1)
        n = SCHEDULE.batch
        target = torch.zeros(n, dtype=torch.long, device=device)
        truth = labels([scene.layout for scene in scenes])
        return {
            "pairs": F.cross_entropy(scores.view(2, n).T, target),
            "attributes": attribute_loss(heads(image[:n]), truth) + attribute_loss(heads(text), truth),
        }

    return fit(both, loss, SCHEDULE, work / "preference")["clip"]


def draw_pairs(pool: Pool, rows: npt.NDArray[np.int64], rng: np.random.Generator, smeared: U8) -> tuple[Tensor, Tensor]:
    """Draw pairs of images of these rows, with less and with more of one fault.

    `smeared`, n x 64 x 64 x 3 uint8, holds for each row the smear to blend its image with.

    Returns:
        The better and the worse images, N x 3 x 64 x 64 in -1..1 each.
    """
    good = pool.pixels(rows)
    kinds = rng.integers(len(FAULTS), size=len(rows))
    amounts = np.sort(rng.random((len(rows), 2)), 1)
    amounts[:, 0] *= rng.random(len(rows)) < 0.5  # half of the better images have no fault
    sides = [good.clone(), good.clone()]
    wrong = [row for row, kind in enumerate(kinds) if FAULTS[kind] == "wrong"]
    if wrong:
        scenes = [_wrong_scene(pool.scenes[rows[row]], rng) for row in wrong]
        sides[1][wrong] = to_pixels(render(scenes, [int(rows[row]) for row in wrong], pool.seed))
    for row, kind in enumerate(kinds):
        for side, amount in zip(sides, amounts[row], strict=True):
            side[row] = _add_fault(FAULTS[kind], side[row], float(amount), to_pixels(smeared[rows[row]][None])[0])
    return sides[0], sides[1]


def _wrong_scene(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one thing missing, or one word wrong."""
    if scene.relation is not None and rng.random() < 0.3:
        return Scene((scene.things[rng.integers(2)],), None, scene.background)
    return change_one_word(scene, rng)


def _add_fault(kind: str, pixels: Tensor, amount: float, smear: Tensor) -> Tensor:
    if amount == 0 or kind == "wrong":
        return pixels
    if kind == "blur":
        width = 1 + 2 * int(np.ceil(4 * amount))
        return F.avg_pool2d(F.pad(pixels[None], (width // 2,) * 4, "replicate"), width, 1)[0]
    if kind == "noise":
        return (pixels + 0.4 * amount * torch.randn_like(pixels)).clamp(-1, 1)
    if kind == "colour":
        return (pixels + amount * torch.tensor([0.5, -0.3, -0.4])[torch.randperm(3)][:, None, None]).clamp(-1, 1)
    return torch.lerp(pixels, smear, amount)


def _smeared_images(path: Path, pipeline: Path, pool: Pool, work: Path) -> U8:
    """Load or draw an under-trained UNet's predictions from latents at 30 to 90 % of the noise schedule; returns n x 64 x 64 x 3 uint8."""
    if not path.exists():
        latents = LatentPool(pipeline, pool, work / "latents")
        unet = train_unet(work, latents, UNDERTRAINED, architecture="vega", name="undertrained")
        vae = AutoencoderKL.from_pretrained(pipeline / "vae", torch_dtype=torch.float32)
        starts = progress(range(0, N_SMEARED, 64), desc="smeared images")
        temporary = path.with_suffix(".part.npy")
        np.save(temporary, np.concatenate([_predict_clean(latents, unet, vae, np.arange(start, start + 64)) for start in starts]))
        temporary.rename(path)
    images: U8 = load_array(path)
    return images


@torch.no_grad()
def _predict_clean(latents: LatentPool, unet: UNet2DConditionModel, vae: AutoencoderKL, rows: npt.NDArray[np.int64]) -> U8:
    batch = latents.batch_of_rows(rows, seed=int(rows[0]), least=300, most=900)
    noised = add_noise(latents.scheduler, batch)
    alpha = latents.scheduler.alphas_cumprod[batch.timesteps][:, None, None, None]
    clean = alpha.sqrt() * noised - (1 - alpha).sqrt() * predict(unet, noised, batch)
    pixels = vae.decode(clean / vae.config.scaling_factor).sample.clamp(-1, 1)
    return np.asarray(((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())


@torch.no_grad()
def picks_better(model: CLIPModel, pool: Pool, tokens: CLIPTokenizer) -> float:
    """The share of pairs of the pool's first 512 images in which the better one scores higher; black stands in for the smears."""
    rng = np.random.default_rng(0)
    rows = np.arange(512)
    better, worse = draw_pairs(pool, rows, rng, np.zeros((512, 64, 64, 3), np.uint8))
    text = F.normalize(model.get_text_features(input_ids=tokenize_captions(tokens, [pool.scenes[row] for row in rows])).pooler_output)
    one, other = ((F.normalize(model.get_image_features(pixel_values=pixels).pooler_output) * text).sum(1) for pixels in (better, worse))
    return int((one > other).sum()) / len(rows)
