"""The device and the processes that train a student, and what to do where the device has too little memory."""

import os
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs

from distillation.recipe_tables import Training
from sdbench.errors import UserError
from sdbench.models.out_of_memory import explain_out_of_memory

PROCESS_TIMEOUT = timedelta(minutes=30)  # for processes that wait while another one saves a checkpoint or draws samples
DATA_PARALLEL = DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU


def make_accelerator(device: Literal["cpu", "cuda"], dtype: Literal["bfloat16", "float32"]) -> Accelerator:
    """The accelerator for one process or several.

    Raises:
        UserError: the device is missing; or this machine has more processes than GPUs; or this process has already trained on another
            device or in another precision; or accelerate is set up to shard networks (FSDP, DeepSpeed), of which each process would then
            train and save only its part.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "no device 'cuda' here: torch finds no GPU; `sdbench doctor` shows what this machine can run, --device cpu always works"
        )
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if device == "cuda" and processes > gpus:  # NCCL refuses two on one GPU, with a traceback from each process
        raise UserError(
            f"{processes} processes were started on a machine where torch finds {gpus} GPUs; each trains on its own: start at most {gpus}"
        )
    handlers = [
        InitProcessGroupKwargs(timeout=PROCESS_TIMEOUT),
        DistributedDataParallelKwargs(gradient_as_bucket_view=True),  # keeps one copy of the gradients
    ]
    try:
        accelerator = Accelerator(cpu=device == "cpu", mixed_precision="bf16" if dtype == "bfloat16" else "no", kwargs_handlers=handlers)
    except ValueError as error:  # accelerate keeps one global state per process
        raise UserError(
            f"this process has already trained with other settings; start a new one to train in {dtype} on {device} ({error})"
        ) from error
    if accelerator.device.type != device:
        raise UserError(f"this process has already trained on {accelerator.device.type}; start a new one to train on {device}")
    if accelerator.distributed_type not in DATA_PARALLEL:
        raise UserError(
            f"accelerate is set up for {accelerator.distributed_type.value}, which shards networks; here each process holds whole ones. "
            "Start the processes with torchrun, or with `accelerate launch --multi_gpu`"
        )
    return accelerator


def emulates_bfloat16(device: str) -> bool:
    """Whether a device ("cpu", "cuda" or "cuda:<index>") is a GPU older than bfloat16, which computes it in float32, many times slower."""
    if not device.startswith("cuda"):
        return False
    with torch.cuda.device(device):
        return not torch.cuda.is_bf16_supported(including_emulation=False)


def explain_training_memory(settings: Training, device: str) -> AbstractContextManager[None]:
    """While open, turn an out-of-memory error of the device into one that says how to make a step need less memory.

    Raises:
        TooLittleMemoryError: the device had too little memory.
    """
    ways = []
    if settings.batch > 1:
        ways.append("halve batch and double accumulation in a copy of the recipe, which keeps the images per step")
    if not settings.checkpointing:
        ways.append("set checkpointing = true in a copy of the recipe, which recomputes activations instead of keeping them")
    what = (
        f"to train with batch = {settings.batch}, accumulation = {settings.accumulation} and checkpointing = "
        f"{str(settings.checkpointing).lower()}, whose memory `distillation plan` estimates"
    )
    return explain_out_of_memory(device, what, ways)
