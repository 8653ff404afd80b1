"""Makes the embedded family's weights, part by part, each resumable, in the layout in which they are shipped.

`<work>/out/` is laid out as `sdbench/scenes/weights/`. A part that is finished has `<work>/out/reports/<part>.json`, which
holds its schedule and what it scored on held-out scenes; it is not made again. Students come from `distillation`.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sdbench.errors import unknown_name
from sdbench.models import architectures
from sdbench.models.text_encoders import save_text_encoder
from sdbench.scenes.networks import SceneNet
from sdbench.scenes.training import clip, preference, reader, text, unet, vae
from sdbench.scenes.training.evaluation import Watch
from sdbench.scenes.training.pool import Pool
from sdbench.training.latents import LatentPool
from sdbench.training.loop import Schedule

TRAIN_SCENES, HELDOUT_SCENES = 24576, 2048


@dataclass(frozen=True)
class Shop:
    """Where the work happens, and the pictures it uses."""

    work: Path
    device: str

    @property
    def out(self) -> Path:
        """What will be shipped."""
        return self.work / "out"

    @property
    def pipeline(self) -> Path:
        """The teacher's pipeline folder."""
        return self.out / "pipeline"

    @property
    def train(self) -> Pool:
        """Pictures to train on."""
        return Pool(self.work / "pool", TRAIN_SCENES)

    @property
    def heldout(self) -> Pool:
        """Pictures to score on."""
        return Pool(self.work / "pool", HELDOUT_SCENES, "heldout")

    @property
    def tokens(self) -> CLIPTokenizer:
        """The tokenizer of all text encoders."""
        return CLIPTokenizer.from_pretrained(self.pipeline / "tokenizer")


def make(part: str, shop: Shop) -> None:
    """Train one part, unless it is there already."""
    if part not in PARTS:
        raise unknown_name("part of the embedded family", part, PARTS)
    report = shop.out / "reports" / f"{part}.json"
    if report.exists():
        return
    schedule, train = PARTS[part]
    scores = train(shop)
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(
        json.dumps({"schedule": asdict(schedule), "scores": scores, "device": shop.device, "torch": torch.__version__}, indent=1)
    )


def _vae(shop: Shop) -> dict[str, float]:
    made: AutoencoderKL = vae.train(shop.work, shop.train, device=shop.device)
    made.half().save_pretrained(shop.pipeline / "vae")
    read = AutoencoderKL.from_pretrained(shop.pipeline / "vae", torch_dtype=torch.float32)
    return {"psnr_db": vae.psnr_db(read, shop.heldout, "cpu")}


def _text(shop: Shop) -> dict[str, float]:
    text.tokenizer(shop.pipeline / "tokenizer").save_pretrained(shop.pipeline / "tokenizer_2")
    first = text.train(shop.work, "text_encoder", shop.tokens, device=shop.device)
    plain = CLIPTextModel(first.config)
    plain.load_state_dict(
        {key.removeprefix("text_model."): value for key, value in first.state_dict().items() if key.startswith("text_model.")}
    )
    save_text_encoder(plain.half(), shop.pipeline / "text_encoder")
    second: CLIPTextModelWithProjection = text.train(shop.work, "text_encoder_2", shop.tokens, device=shop.device)
    save_text_encoder(second.half(), shop.pipeline / "text_encoder_2")
    DDIMScheduler.from_config(architectures.PARTS["scenes"]["scheduler"]).save_pretrained(shop.pipeline / "scheduler")
    return {}


def _reader(shop: Shop) -> dict[str, float]:
    net = reader.train(shop.work, "reader", shop.train, reader.READER_WIDTH, reader.READER, augment=True, device=shop.device)
    save_half(net, shop.out / "evaluators" / "reader.safetensors")
    return {"accuracy": reader.accuracy(net.cpu(), shop.heldout)}


def _features(shop: Shop) -> dict[str, float]:
    net = reader.train(shop.work, "features", shop.train, reader.FEATURES_WIDTH, reader.FEATURES, augment=False, device=shop.device)
    save_half(net, shop.out / "evaluators" / "features.safetensors")
    return {"accuracy": reader.accuracy(net.cpu(), shop.heldout)}


def _clip(shop: Shop) -> dict[str, float]:
    model = clip.train(shop.work, shop.train, shop.tokens, device=shop.device)
    save_half(model, shop.out / "evaluators" / "clip.safetensors")
    (shop.out / "evaluators" / "clip.json").write_text(json.dumps(clip.config(len(shop.tokens)), indent=1))
    return {"picks_right": clip.picks_right(model.cpu(), shop.heldout, shop.tokens)}


def _teacher(shop: Shop) -> dict[str, float]:
    latents = LatentPool(shop.pipeline, shop.train, shop.work / "latents")
    watch = Watch(latents, SceneNet.load(shop.out / "evaluators" / "reader.safetensors"))
    made: UNet2DConditionModel = unet.train(shop.work, latents, device=shop.device, watch=watch)
    _, scores = watch(made)
    made.half().save_pretrained(shop.pipeline / "unet")
    StableDiffusionXLPipeline(**latents.parts, unet=made, add_watermarker=False).save_config(shop.pipeline)
    return scores


def _preference(shop: Shop) -> dict[str, float]:
    model = preference.train(shop.work, shop.train, shop.tokens, shop.pipeline, device=shop.device)
    model.half().save_pretrained(shop.out / "evaluators" / "preference")
    return {"picks_better": preference.picks_better(model.float().cpu(), shop.heldout, shop.tokens)}


PARTS: dict[str, tuple[Schedule, Callable[[Shop], dict[str, float]]]] = {
    "vae": (vae.SCHEDULE, _vae),
    "text": (text.SCHEDULE, _text),
    "reader": (reader.READER, _reader),
    "features": (reader.FEATURES, _features),
    "clip": (clip.SCHEDULE, _clip),
    "preference": (preference.SCHEDULE, _preference),
    "teacher": (unet.SCHEDULE, _teacher),
}


def save_half(model: nn.Module, path: Path) -> None:
    """Write a network's tensors as fp16 safetensors (counters stay whole numbers)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    save_file({name: (value.half() if value.is_floating_point() else value).contiguous() for name, value in tensors.items()}, path)
