"""What training would take, found out without weights or device: memory of a GPU, work, time and money.

Shapes alone go through the networks, on PyTorch's fake CUDA device, which computes and stores nothing.
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

from distillation.prune import on_meta
from distillation.taps import Tap
from sdbench.probes.work import empty_input

FLOAT32 = 4  # bytes
H100_TFLOPS = 989.0  # dense bfloat16, NVIDIA's data sheet of the H100 SXM
# Of it, assumed to be reached: at best what SDXL's half-precision inference of 8 pictures reaches of an A100 (38 %, by huggingface/open-muse's
# benchmark), at worst less than half as much, for training in eager mode has norms and losses in float32 and no compiled kernels.
SHARES = (0.4, 0.15)
# A forward and a backward in forwards, without and with gradient checkpointing; counted with torch's FlopCounterMode.
PASSES = {False: 3.0, True: 3.75}  # 3.72 for Vega, 3.75 for SSD-1B: not all of a block is computed again
_reference: Callable[[torch.UntypedStorage], Any] = StorageWeakRef  # ships no types


@dataclass(frozen=True)
class Memory:
    """Bytes that training keeps on a GPU. Workspaces, gradients on their way through a block and what the allocator wastes are not in it.

    Attributes:
        weights: of the student, in float32.
        gradients: likewise.
        moments: AdamW's two.
        average: of the weights (EMA).
        copies: of the weights in the dtype to compute in, which autocast keeps for the backward pass; 0 for float32.
        teacher: its weights in that dtype.
        activations: kept for the backward pass of one picture.
        checkpointed: the same with gradient checkpointing, before any block is computed again.
        again: what the largest block adds while it is computed again.
        taps: the teacher's outputs that one picture is compared with.
    """

    weights: int
    gradients: int
    moments: int
    average: int
    copies: int
    teacher: int
    activations: int
    checkpointed: int
    again: int
    taps: int

    def together(self, batch: int, *, checkpointing: bool) -> int:
        """All of it, with `batch` pictures in a forward pass."""
        states = self.weights + self.gradients + self.moments + self.average + self.copies
        kept = self.checkpointed + self.again if checkpointing else self.activations
        return states + self.teacher + batch * (self.taps + kept)


def memory(
    student: UNet2DConditionModel, teacher_parameters: int, taps: Sequence[Tap], *, latent_size: int, tokens: int, dtype: str, ema: bool
) -> Memory:
    """The memory of training a student.

    Args:
        student: on any device.
        teacher_parameters: how many the teacher has.
        taps: what is compared, their shapes at the student's own `sample_size`.
        latent_size: side of the latents.
        tokens: length of the text.
        dtype: that both networks compute in.
        ema: an average of the weights is kept.
    """
    n, itemsize = count(student), getattr(torch, dtype).itemsize
    area = (latent_size / student.config.sample_size) ** 2
    (activations, again), (checkpointed, _) = (
        kept_for_backward(student.config, latent_size=latent_size, tokens=tokens, dtype=dtype, checkpointing=twice)
        for twice in (False, True)
    )
    return Memory(
        weights=FLOAT32 * n,
        gradients=FLOAT32 * n,
        moments=2 * FLOAT32 * n,
        average=FLOAT32 * n if ema else 0,
        copies=itemsize * n if itemsize < FLOAT32 else 0,
        teacher=itemsize * teacher_parameters,
        activations=activations,
        checkpointed=checkpointed,
        again=again,
        taps=round(area * itemsize * sum(math.prod(tap.shape) for tap in taps)),
    )


def count(network: nn.Module) -> int:
    """Its parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def kept_for_backward(config: Mapping[str, Any], *, latent_size: int, tokens: int, dtype: str, checkpointing: bool) -> tuple[int, int]:
    """Bytes of activations that a UNet's forward keeps for one picture, its weights and their copies not counted: of all, and of its largest block.

    As in training on a GPU: under autocast where `dtype` is a 16-bit one (norms compute in float32), attention in one
    kernel, which keeps its inputs, its output and a number a query instead of a matrix.

    Args:
        config: of a `UNet2DConditionModel`.
        latent_size: side of the latents.
        tokens: length of the text.
        dtype: to compute in.
        checkpointing: blocks keep their inputs and are computed again.
    """
    with on_fake_gpu(config, dtype, checkpointing=checkpointing) as (unet, total):
        of_blocks = _note_blocks(unet, total)
        output = unet(**empty_input(config, latent_size, tokens))
        bytes_kept = total()
        del output  # until here it held what was kept
    return bytes_kept, max(of_blocks)


def _note_blocks(unet: UNet2DConditionModel, total: Callable[[], int]) -> list[int]:
    """A list that a forward pass fills with what each block keeps that diffusers computes again as one."""
    before: list[int] = []
    kept: list[int] = []
    for block in (module for module in unet.modules() if isinstance(module, ResnetBlock2D | BasicTransformerBlock)):
        block.register_forward_pre_hook(lambda *_: before.append(total()))
        block.register_forward_hook(lambda *_: kept.append(total() - before.pop()))
    return kept


@contextmanager
def on_fake_gpu(config: Mapping[str, Any], dtype: str, *, checkpointing: bool) -> Iterator[tuple[UNet2DConditionModel, Callable[[], int]]]:
    """A UNet as it trains, on a device that stores nothing, and what `kept_by` gives of it."""
    unet, kind = on_meta(config), getattr(torch, dtype)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    shapes = {name: like.shape for name, like in unet.state_dict().items()}
    with FakeTensorMode(), torch.device("cuda"):
        # weights that are there in `dtype` already need no copy, which would pass for an activation
        unet.load_state_dict({name: torch.empty(shape, dtype=kind) for name, shape in shapes.items()}, assign=True)
        with _autocast(kind), _FusedAttention(), kept_by(unet.train()) as total:
            yield unet, total


@contextmanager
def kept_by(network: nn.Module) -> Iterator[Callable[[], int]]:
    """While open, autograd's savings are watched => a function: bytes that are kept now, each storage once, without parameters."""
    own = {_reference(parameter.untyped_storage()) for parameter in network.parameters()}
    kept: dict[Any, int] = {}

    def note(tensor: Tensor) -> torch.UntypedStorage:
        storage = tensor.untyped_storage()
        kept[_reference(storage)] = storage.nbytes()
        return storage  # instead of the tensor, which may hold the graph that holds it

    def never(_: torch.UntypedStorage) -> Tensor:
        raise NotImplementedError

    def total() -> int:
        return sum(size for storage, size in kept.items() if storage not in own and not storage.expired())

    with torch.autograd.graph.saved_tensors_hooks(note, never):
        yield total


class _FusedAttention(TorchFunctionMode):
    """Attention by the kernel that a GPU has for it, wherever this runs."""

    def __torch_function__(self, function: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if function is scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention(*args[:3])[0]  # noqa: SLF001  # the kernel's only name
        return function(*args, **(kwargs or {}))


@contextmanager
def _autocast(dtype: torch.dtype) -> Iterator[None]:
    """CUDA's autocast, which `torch.autocast` refuses to switch on where there is no GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", dtype.itemsize < FLOAT32)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


def step_flops(teacher_macs: int, student_macs: int, pictures: int, *, checkpointing: bool) -> int:
    """FLOPs of an optimiser step: for each picture a forward of the teacher, and a forward and a backward of the student.

    Args:
        teacher_macs: multiply-accumulates of a forward, 2 FLOPs each.
        student_macs: likewise.
        pictures: of all forward passes that the step sums up.
        checkpointing: the student's activations are computed again in the backward.
    """
    return round(2 * (teacher_macs + PASSES[checkpointing] * student_macs) * pictures)


def gpu_hours(flops: int, tflops: float) -> float:
    """Time that so much work takes one GPU that does `tflops` x 10^12 FLOPs a second."""
    return flops / (tflops * 1e12) / 3600
