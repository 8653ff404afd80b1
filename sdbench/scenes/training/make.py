"""Trains the weights of the embedded family, part by part; each part is resumable.

`<work>/out/` has the same layout as `sdbench/scenes/weights/`. A finished part has a report, `<work>/out/reports/<part>.json`,
with its schedule and its scores on held-out scenes, and is not trained again. Students are made by `distillation`.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sdbench.disk import read_json, write_bytes
from sdbench.errors import UserError
from sdbench.models import architectures
from sdbench.models.text_encoders import PREFIX, save_text_encoder
from sdbench.scenes.networks import SceneNet
from sdbench.scenes.training import clip, preference, reader, text, unet, vae
from sdbench.scenes.training.evaluation import SceneEvaluation
from sdbench.scenes.training.pool import Pool
from sdbench.training.latents import LatentPool
from sdbench.training.loop import Schedule

TRAIN_SCENES, HELDOUT_SCENES = 24576, 2048


@dataclass(frozen=True)
class Workspace:
    """The folder and device of training, and its shared inputs."""

    work: Path
    device: str

    @property
    def out(self) -> Path:
        """The folder of the files to ship."""
        return self.work / "out"

    @property
    def pipeline(self) -> Path:
        """The folder of the teacher's pipeline."""
        return self.out / "pipeline"

    @property
    def train(self) -> Pool:
        """The images to train on."""
        return Pool(self.work / "pool", TRAIN_SCENES)

    @property
    def heldout(self) -> Pool:
        """The held-out images to score on."""
        return Pool(self.work / "pool", HELDOUT_SCENES, "heldout")

    @property
    def tokens(self) -> CLIPTokenizer:
        """The tokenizer of all text encoders."""
        return CLIPTokenizer.from_pretrained(self.pipeline / "tokenizer")


def train_part(part: str, workspace: Workspace) -> None:
    """Train one part, unless it is finished already.

    Raises:
        UserError: it was finished with another schedule, or its training fails (see `fit`).
    """
    report, (schedule, train) = workspace.out / "reports" / f"{part}.json", PARTS[part]
    if report.exists():
        if read_json(report, part=report)["schedule"] != json.loads(json.dumps(asdict(schedule))):
            raise UserError(f"{part!r} in {workspace.work} was trained with another schedule; name another folder with --work")
        return
    scores = train(workspace)
    content = {"schedule": asdict(schedule), "scores": scores, "device": workspace.device, "torch": torch.__version__}
    write_bytes(report, json.dumps(content, indent=1).encode())


def _vae(workspace: Workspace) -> dict[str, float]:
    trained: AutoencoderKL = vae.train(workspace.work, workspace.train, device=workspace.device)
    trained.half().save_pretrained(workspace.pipeline / "vae")
    saved = AutoencoderKL.from_pretrained(workspace.pipeline / "vae", torch_dtype=torch.float32)
    return {"psnr_db": vae.psnr_db(saved, workspace.heldout)}


def _text(workspace: Workspace) -> dict[str, float]:
    text.train_tokenizer(workspace.pipeline / "tokenizer").save_pretrained(workspace.pipeline / "tokenizer_2")
    first = text.train(workspace.work, "text_encoder", workspace.tokens, device=workspace.device)
    plain = CLIPTextModel(first.config)
    plain.load_state_dict({key.removeprefix(PREFIX): value for key, value in first.state_dict().items() if key.startswith(PREFIX)})
    save_text_encoder(plain.half(), workspace.pipeline / "text_encoder")
    second: CLIPTextModelWithProjection = text.train(workspace.work, "text_encoder_2", workspace.tokens, device=workspace.device)
    save_text_encoder(second.half(), workspace.pipeline / "text_encoder_2")
    DDIMScheduler.from_config(architectures.PARTS["scenes"]["scheduler"]).save_pretrained(workspace.pipeline / "scheduler")
    return {}


def _scene_net(name: str, width: int, schedule: Schedule, workspace: Workspace, *, augment: bool) -> dict[str, float]:
    net = reader.train(workspace.work, name, workspace.train, width, schedule, augment=augment, device=workspace.device)
    save_half(net, workspace.out / "evaluators" / f"{name}.safetensors")
    return {"accuracy": reader.accuracy(net.cpu(), workspace.heldout)}


def _clip(workspace: Workspace) -> dict[str, float]:
    model = clip.train(workspace.work, workspace.train, workspace.tokens, device=workspace.device)
    save_half(model, workspace.out / "evaluators" / "clip.safetensors")
    (workspace.out / "evaluators" / "clip.json").write_text(json.dumps(clip.config(len(workspace.tokens)), indent=1), encoding="utf-8")
    return {"picks_right": clip.picks_right(model.cpu(), workspace.heldout, workspace.tokens)}


def _teacher(workspace: Workspace) -> dict[str, float]:
    latents = LatentPool(workspace.pipeline, workspace.train, workspace.work / "latents")
    evaluation = SceneEvaluation(latents, SceneNet.load(workspace.out / "evaluators" / "reader.safetensors"))
    teacher: UNet2DConditionModel = unet.train(workspace.work, latents, device=workspace.device, evaluate=evaluation)
    _, scores = evaluation(teacher)
    teacher.half().save_pretrained(workspace.pipeline / "unet")
    StableDiffusionXLPipeline(**latents.parts, unet=teacher, add_watermarker=False).save_config(workspace.pipeline)
    return scores


def _preference(workspace: Workspace) -> dict[str, float]:
    model = preference.train(workspace.work, workspace.train, workspace.tokens, workspace.pipeline, device=workspace.device)
    model.half().save_pretrained(workspace.out / "evaluators" / "preference")
    return {"picks_better": preference.picks_better(model.float().cpu(), workspace.heldout, workspace.tokens)}


PARTS: dict[str, tuple[Schedule, Callable[[Workspace], dict[str, float]]]] = {
    "vae": (vae.SCHEDULE, _vae),
    "text": (text.SCHEDULE, _text),
    "reader": (reader.READER, partial(_scene_net, "reader", reader.READER_WIDTH, reader.READER, augment=True)),
    "features": (reader.FEATURES, partial(_scene_net, "features", reader.FEATURES_WIDTH, reader.FEATURES, augment=False)),
    "clip": (clip.SCHEDULE, _clip),
    "preference": (preference.SCHEDULE, _preference),
    "teacher": (unet.SCHEDULE, _teacher),
}


def save_half(model: nn.Module, path: Path) -> None:
    """Write a network's tensors as fp16 safetensors; integers stay as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    save_file({name: (value.half() if value.is_floating_point() else value).contiguous() for name, value in tensors.items()}, path)
