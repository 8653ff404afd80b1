"""Trains the preference model: PickScore's form (a `transformers` CLIP, logit scale times cosine), for pairs of scenes.

Of two pictures for one caption, the better is the one with less of a fault: blur, noise, a colour shift, a thing missing
or wrong, or the smear of an under-trained generator (what a Vega-shaped UNet guesses from noised latents after 400 steps).
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from sdbench.scenes.attributes import AttributeHeads, attribute_loss, labels
from sdbench.scenes.grammar import Scene
from sdbench.scenes.render import render
from sdbench.scenes.training.clip import one_word_wrong
from sdbench.scenes.training.pool import Pool, to_pixels
from sdbench.scenes.training.text import MAX_TOKENS, tokenise
from sdbench.scenes.training.unet import train as train_unet
from sdbench.training.latents import LatentPool, noisy, predict
from sdbench.training.loop import Schedule, fit

SCHEDULE = Schedule(steps=1500, lr=1.5e-3, batch=48, warmup=100, ema=0.99, seed=40)
UNDERTRAINED = Schedule(steps=400, lr=2e-3, batch=32, warmup=50, ema=0.99, seed=2)
SMEARED = 2048
FAULTS = ("blur", "noise", "colour", "wrong", "smear")


def config(tokens: CLIPTokenizer) -> CLIPConfig:
    """The CLIP's configuration."""
    text = {
        "vocab_size": len(tokens), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS, "bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id, "pad_token_id": tokens.pad_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)


def train(work: Path, pool: Pool, tokens: CLIPTokenizer, pipeline: Path, schedule: Schedule = SCHEDULE, device: str = "cpu") -> CLIPModel:
    """Train it => the model in evaluation mode."""
    smeared = _smears(work / "smears.npy", pipeline, pool, work)
    torch.manual_seed(schedule.seed)
    clip, heads = CLIPModel(config(tokens)), AttributeHeads(64)
    both = nn.ModuleDict({"clip": clip, "heads": heads}).to(device)

    def loss(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((schedule.seed, step))
        rows = rng.integers(SMEARED, size=schedule.batch)
        scenes = [pool.scenes[row] for row in rows]
        better, worse = pair(pool, rows, rng, smeared)
        image = features(clip, torch.cat([better, worse]).to(device))
        text = text_features(clip, tokenise(tokens, scenes).to(device))
        scores = clip.logit_scale.clamp(max=4.6).exp() * (F.normalize(text).repeat(2, 1) * F.normalize(image)).sum(1)
        n = schedule.batch
        target = torch.zeros(n, dtype=torch.long, device=device)
        truth = labels([scene.layout for scene in scenes])
        return {
            "pairs": F.cross_entropy(scores.view(2, n).T, target),
            "attributes": attribute_loss(heads(image[:n]), truth) + attribute_loss(heads(text), truth),
        }

    kept: CLIPModel = fit(both, loss, schedule, work / "preference")["clip"]  # type: ignore[index]  # a ModuleDict
    return kept


def features(model: CLIPModel, pixels: Tensor) -> Tensor:
    """N x 3 x 64 x 64 in -1..1 => N x 64, as `CLIPModel.get_image_features` makes them."""
    embedded: Tensor = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    return embedded


def text_features(model: CLIPModel, ids: Tensor) -> Tensor:
    """N x tokens => N x 64, as `CLIPModel.get_text_features` makes them."""
    embedded: Tensor = model.text_projection(model.text_model(input_ids=ids).pooler_output)
    return embedded


def pair(pool: Pool, rows: npt.NDArray[np.int64], rng: np.random.Generator, smeared: npt.NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Pictures of the rows' scenes with less and with more of one fault each => two of N x 3 x 64 x 64 in -1..1."""
    good = pool.pixels(rows)
    kinds = rng.integers(len(FAULTS), size=len(rows))
    amounts = np.sort(rng.random((len(rows), 2)), 1)
    amounts[:, 0] *= rng.random(len(rows)) < 0.5  # half of the better pictures have no fault
    sides = [good.clone(), good.clone()]
    wrong = [row for row, kind in enumerate(kinds) if FAULTS[kind] == "wrong"]
    if wrong:
        scenes = [_wrong(pool.scenes[rows[row]], rng) for row in wrong]
        sides[1][wrong] = to_pixels(render(scenes, [int(rows[row]) for row in wrong], pool.seed))
    for row, kind in enumerate(kinds):
        for side, amount in zip(sides, amounts[row], strict=True):
            side[row] = _fault(FAULTS[kind], side[row], float(amount), to_pixels(smeared[rows[row]][None])[0])
    return sides[0], sides[1]


def _wrong(scene: Scene, rng: np.random.Generator) -> Scene:
    """A thing missing, or one word wrong."""
    if scene.relation is not None and rng.random() < 0.3:
        return Scene((scene.things[rng.integers(2)],), None, scene.background)
    return one_word_wrong(scene, rng)


def _fault(kind: str, pixels: Tensor, amount: float, smear: Tensor) -> Tensor:
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


def _smears(path: Path, pipeline: Path, pool: Pool, work: Path) -> npt.NDArray[np.uint8]:
    """Guesses of an under-trained UNet from latents noised by 30 to 90 % of the schedule => n x 64 x 64 x 3 uint8."""
    if not path.exists():
        latents = LatentPool(pipeline, pool, work / "latents")
        unet = train_unet(work, latents, UNDERTRAINED, architecture="vega", name="undertrained")
        vae = AutoencoderKL.from_pretrained(pipeline / "vae", torch_dtype=torch.float32)
        starts = tqdm(range(0, SMEARED, 64), desc="smeared pictures")
        beside = path.with_suffix(".part.npy")
        np.save(beside, np.concatenate([_guess(latents, unet, vae, np.arange(start, start + 64)) for start in starts]))
        beside.rename(path)
    made: npt.NDArray[np.uint8] = np.load(path)
    return made


@torch.no_grad()
def _guess(latents: LatentPool, unet: UNet2DConditionModel, vae: AutoencoderKL, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    batch = latents.at(rows, seed=int(rows[0]), least=300, most=900)
    noised = noisy(latents.scheduler, batch)
    alpha = latents.scheduler.alphas_cumprod[batch.timesteps][:, None, None, None]
    guess = alpha.sqrt() * noised - (1 - alpha).sqrt() * predict(unet, noised, batch)
    pixels = vae.decode(guess / vae.config.scaling_factor).sample.clamp(-1, 1)
    return np.asarray(((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())


@torch.no_grad()
def picks_better(model: CLIPModel, pool: Pool, tokens: CLIPTokenizer) -> float:
    """Share of held-out pairs (without smears) in which the better picture scores higher."""
    rng = np.random.default_rng(0)
    wins, rows = 0, np.arange(512)
    better, worse = pair(pool, rows, rng, np.zeros((512, 64, 64, 3), np.uint8))
    text = F.normalize(text_features(model, tokenise(tokens, [pool.scenes[row] for row in rows])))
    one, other = ((F.normalize(features(model, pixels)) * text).sum(1) for pixels in (better, worse))
    wins += int((one > other).sum())
    return wins / len(rows)
