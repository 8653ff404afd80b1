"""Estimates of what training takes (GPU memory, FLOPs, hours), made without weights or a GPU.

Only shapes pass through the networks, on PyTorch's fake CUDA device, which computes and stores nothing.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from distillation.taps import Tap
from sdbench.models.loading import build_on_meta, count_parameters
from sdbench.probes.work import empty_input

FLOAT32 = 4  # bytes
H100_TFLOPS = 989.0  # dense bfloat16, NVIDIA's data sheet of the H100 SXM
# Assumed model FLOPs utilisation. Best case: what half-precision SDXL inference of 8 images reaches on an A100 (38 %, the benchmark of
# huggingface/open-muse). Worst case: less than half of that, since training in eager mode has norms and losses in float32 and no
# compiled kernels.
ASSUMED_MFU = (0.4, 0.15)
# Work of a forward and a backward pass in forward passes, by gradient checkpointing; counted with torch's FlopCounterMode.
FORWARD_EQUIVALENTS = {False: 3.0, True: 3.75}  # 3.72 for Vega, 3.75 for SSD-1B: a block is not recomputed entirely
_reference: Callable[[torch.UntypedStorage], Any] = StorageWeakRef  # ships no types


@dataclass(frozen=True)
class Memory:
    """Bytes that training keeps on a GPU, without workspaces, temporary gradients inside a block and allocator overhead.

    Attributes:
        weights: of the student, in float32.
        gradients: of the student, in float32.
        moments: AdamW's two, in float32.
        ema: moving average of the weights, in float32.
        autocast_copies: of the weights in the compute dtype, which autocast keeps for the backward pass; 0 for float32.
        teacher: its weights in the compute dtype.
        activations: saved for the backward pass of one image.
        checkpointed: the same with gradient checkpointing, before any block is recomputed.
        recomputed: what the largest block adds while it is recomputed.
        taps: the teacher's outputs that one image is compared with.
    """

    weights: int
    gradients: int
    moments: int
    ema: int
    autocast_copies: int
    teacher: int
    activations: int
    checkpointed: int
    recomputed: int
    taps: int

    def total(self, batch: int, *, checkpointing: bool) -> int:
        """The sum, with `batch` images per forward pass."""
        states = self.weights + self.gradients + self.moments + self.ema + self.autocast_copies
        activations = self.checkpointed + self.recomputed if checkpointing else self.activations
        return states + self.teacher + batch * (self.taps + activations)


def fixed_bytes(student_parameters: int, teacher_parameters: int, *, dtype: str, ema: bool) -> dict[str, int]:
    """What `Memory` holds before any image, by name: a GPU with less cannot train the student with any batch."""
    n, itemsize = student_parameters, getattr(torch, dtype).itemsize
    return {
        "weights": FLOAT32 * n,
        "gradients": FLOAT32 * n,
        "moments": 2 * FLOAT32 * n,
        "ema": FLOAT32 * n if ema else 0,
        "autocast_copies": itemsize * n if itemsize < FLOAT32 else 0,
        "teacher": itemsize * teacher_parameters,
    }


def estimate_memory(
    student: UNet2DConditionModel, teacher_parameters: int, taps: Sequence[Tap], *, latent_size: int, tokens: int, dtype: str, ema: bool
) -> Memory:
    """Estimate the memory for training a student.

    Args:
        student: on any device.
        teacher_parameters: number of parameters of the teacher.
        taps: with shapes at the student's own `sample_size`.
        dtype: that both networks compute in.
    """
    area = (latent_size / student.config.sample_size) ** 2
    (activations, largest_block), (checkpointed, _) = (
        activation_bytes(student.config, latent_size=latent_size, tokens=tokens, dtype=dtype, checkpointing=checkpointing)
        for checkpointing in (False, True)
    )
    return Memory(
        **fixed_bytes(count_parameters(student), teacher_parameters, dtype=dtype, ema=ema),
        activations=activations,
        checkpointed=checkpointed,
        recomputed=largest_block,
        taps=round(area * getattr(torch, dtype).itemsize * sum(math.prod(tap.shape) for tap in taps)),
    )


def activation_bytes(config: Mapping[str, Any], *, latent_size: int, tokens: int, dtype: str, checkpointing: bool) -> tuple[int, int]:
    """Count the bytes of activations that a UNet's forward pass saves for one image, without weights and their copies.

    As in training on a GPU: under autocast if `dtype` has 16 bits (norms compute in float32), and with fused attention, which
    saves its inputs, its output and one number per query instead of a matrix.

    Args:
        checkpointing: blocks save only their inputs and are recomputed.

    Returns:
        The total, and what the largest block saves.
    """
    with unet_on_fake_gpu(config, dtype, checkpointing=checkpointing) as (unet, saved_bytes):
        block_bytes = _record_block_bytes(unet, saved_bytes)
        output = unet(**empty_input(config, latent_size, tokens))
        total = saved_bytes()
        del output  # it kept the activations alive
    return total, max(block_bytes)


def _record_block_bytes(unet: UNet2DConditionModel, saved_bytes: Callable[[], int]) -> list[int]:
    """A list that a forward pass fills with the bytes saved by each block that diffusers recomputes as a unit."""
    before: list[int] = []
    added: list[int] = []
    for block in (module for module in unet.modules() if isinstance(module, ResnetBlock2D | BasicTransformerBlock)):
        block.register_forward_pre_hook(lambda *_: before.append(saved_bytes()))
        block.register_forward_hook(lambda *_: added.append(saved_bytes() - before.pop()))
    return added


@contextmanager
def unet_on_fake_gpu(
    config: Mapping[str, Any], dtype: str, *, checkpointing: bool
) -> Iterator[tuple[UNet2DConditionModel, Callable[[], int]]]:
    """Yield a UNet in training mode on a fake GPU, and the function of `track_saved_bytes` for it."""
    unet, weight_dtype = build_on_meta("unet", config), getattr(torch, dtype)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    shapes = {name: tensor.shape for name, tensor in unet.state_dict().items()}
    with FakeTensorMode(), torch.device("cuda"):
        # weights in `dtype`, so that autocast makes no copies, which would count as activations
        unet.load_state_dict({name: torch.empty(shape, dtype=weight_dtype) for name, shape in shapes.items()}, assign=True)
        with _cuda_autocast(weight_dtype), _FusedAttention(), track_saved_bytes(unet.train()) as saved_bytes:
            yield unet, saved_bytes


@contextmanager
def track_saved_bytes(network: nn.Module) -> Iterator[Callable[[], int]]:
    """Track what autograd saves; yields a function that counts the bytes saved now, each storage once, without the network's parameters."""
    parameters = {_reference(parameter.untyped_storage()) for parameter in network.parameters()}
    saved: dict[Any, int] = {}

    def record(tensor: Tensor) -> torch.UntypedStorage:
        storage = tensor.untyped_storage()
        saved[_reference(storage)] = storage.nbytes()
        return storage  # not the tensor, whose graph may refer back to it

    def unpack(_: torch.UntypedStorage) -> Tensor:
        raise NotImplementedError  # there is no backward pass

    def saved_bytes() -> int:
        return sum(size for storage, size in saved.items() if storage not in parameters and not storage.expired())

    with torch.autograd.graph.saved_tensors_hooks(record, unpack):
        yield saved_bytes


class _FusedAttention(TorchFunctionMode):
    """Computes attention with a GPU's fused kernel, on any device."""

    def __torch_function__(self, function: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if function is scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention(*args[:3])[0]  # noqa: SLF001  # the kernel's only name
        return function(*args, **(kwargs or {}))


@contextmanager
def _cuda_autocast(dtype: torch.dtype) -> Iterator[None]:
    """CUDA's autocast, which `torch.autocast` refuses to enable without a GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", dtype.itemsize < FLOAT32)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


def step_flops(teacher_macs: int, student_macs: int, images: int, *, checkpointing: bool) -> int:
    """FLOPs of an optimiser step: for each image, a forward pass of the teacher, and a forward and a backward pass of the student.

    Args:
        teacher_macs, student_macs: multiply-accumulates of a forward pass, 2 FLOPs each.
        images: in all accumulated batches of the step.
        checkpointing: the student's activations are recomputed in the backward pass.
    """
    return round(2 * (teacher_macs + FORWARD_EQUIVALENTS[checkpointing] * student_macs) * images)


def gpu_hours(flops: int, tflops: float) -> float:
    """Hours that one GPU at `tflops` x 10^12 FLOPs per second takes."""
    return flops / (tflops * 1e12) / 3600
