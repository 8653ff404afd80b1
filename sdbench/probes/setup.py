"""Load the pipeline of a request and apply its setting: compilation, memory order, tiny VAE."""

import time
from collections.abc import Mapping
from typing import Any

import torch

from sdbench.models.loading import count_parameters
from sdbench.models.loading import load as load_pipeline
from sdbench.models.random_weights import random_tiny_vae
from sdbench.probes.request import Request
from sdbench.probes.stages import Stages
from sdbench.settings import Setting


def load(request: Request) -> tuple[Stages, float]:
    """Load the pipeline of a request, ready to be timed, and return its stages and the seconds that loading took (without the imports).

    On CUDA, a pipeline in float32 is timed in full float32. In one of 16 bits, convolutions that it computes in float32 (those of a VAE
    that overflows in float16) are in TF32, torch's default.

    Raises:
        UserError, RuntimeError: see `loading.load`; the latter also where the card has too little memory.
    """
    on_cuda = request.device.startswith("cuda")
    if on_cuda:
        torch.cuda.set_device(torch.device(request.device).index or 0)
        # Set in either case, whatever the variables of a container say; compilers read these older switches.
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = request.dtype != "float32"
    start = time.perf_counter()
    pipe = load_pipeline(request.spec, dtype=request.dtype, device=request.device)
    load_s = time.perf_counter() - start
    apply_setting(pipe, request.setting)
    if on_cuda:
        torch.cuda.empty_cache()  # what loading left in the allocator's cache is not memory that an image needs
    return Stages(pipe, request.sampling, request.setting.batch), load_s


def apply_setting(pipe: Any, setting: Setting) -> None:
    """Apply a setting to a pipeline, in place; compilation itself happens in the first call.

    Shapes are fixed (`dynamic=False`) and a graph break is an error (`fullgraph=True`), so that what is called "compiled" is
    compiled as a whole.
    """
    if setting.vae == "tiny":
        pipe.vae = random_tiny_vae(pipe.vae)
    if setting.channels_last:
        for part in (pipe.unet, pipe.vae):
            part.to(memory_format=torch.channels_last)
    options: dict[str, bool] = {"fullgraph": True, "dynamic": False}
    if setting.compile == "whole":
        pipe.unet.compile(**options)
        pipe.vae.decoder.compile(**options)
    elif setting.compile == "blocks":
        pipe.unet.compile_repeated_blocks(**options)


def describe(pipe: Any) -> dict[str, Any]:
    """Parameters, bytes of weights and configurations of a loaded pipeline, JSON-serialisable; see `work.by_stage` for the last."""
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    tensors = [tensor for network in networks.values() for tensor in (*network.parameters(), *network.buffers())]
    return {
        "parameters": {"unet": count_parameters(pipe.unet), "pipeline": sum(map(count_parameters, networks.values()))},
        "weights_bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        "configs": {name: {"_class_name": type(part).__name__, **_config(part.config)} for name, part in networks.items()},
        "zero_negative": bool(pipe.config.get("force_zeros_for_empty_prompt", False)),
    }


def _config(config: Any) -> dict[str, Any]:
    return dict(config) if isinstance(config, Mapping) else config.to_dict()  # diffusers' and transformers'
