"""The stock classes of a pipeline and its parts, typed `Any`: strict type checking cannot follow the libraries' annotations."""

from typing import Any

from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, CLIPTextModelWithProjection
from transformers.utils import logging as transformers_logging

PIPELINE: Any = StableDiffusionXLPipeline
CLASSES: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}


def silence_libraries() -> None:
    """Turn off the progress bars and warnings of diffusers and transformers; `checks` makes errors of what they warn about."""
    libraries: tuple[Any, ...] = (diffusers_logging, transformers_logging)
    for library in libraries:
        library.disable_progress_bar()
        library.set_verbosity_error()
