"""`distillation prune` copies tensors from the teacher's files to the student's: unchanged and checked."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_unet, with_unet

from distillation.cli import main
from distillation.cut import Cut
from distillation.export import export_student
from distillation.provenance import Provenance
from distillation.prune import prune
from distillation.recipe import load_recipe
from distillation.teacher import open_teacher_for

WEIGHTS = "diffusion_pytorch_model.safetensors"
RECIPES = [load_recipe(name) for name in ("ssd-1b", "vega")]
LAYOUTS = {
    "one file": (torch.float32, {}),
    "shards": (torch.bfloat16, {"max_shard_size": "300KB"}),
    "variant": (torch.float16, {"variant": "fp16"}),
    "shards of a variant": (torch.float16, {"variant": "fp16", "max_shard_size": "300KB"}),
}
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def in_memory() -> list[tuple[Cut, State]]:
    """Cut and weights of each stage of each recipe."""
    teacher = tiny_unet("sdxl")
    return [(cut, prune(teacher, cut).state_dict()) for recipe in RECIPES for cut in recipe.cuts]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_student_on_disk_equals_the_one_made_in_memory(
    layout: str, in_memory: list[tuple[Cut, State]], teacher_folder: Path, tmp_path: Path
) -> None:
    dtype, how = LAYOUTS[layout]
    folder = with_unet(teacher_folder, tmp_path / "teacher", tiny_unet("sdxl").to(dtype), **how)
    assert (len(list((folder / "unet").glob("*.safetensors"))) > 1) == ("shards" in layout)
    teacher = open_teacher_for(folder, RECIPES[0])
    note = Provenance.from_run(RECIPES[0], [teacher], tiny_unet())
    for number, (cut, expected) in enumerate(in_memory if layout == "one file" else in_memory[-1:]):
        out = tmp_path / str(number)
        export_student(prune(teacher.unet(teacher.dtype, "cpu"), cut, copy=False), out, teacher, note, unet_only=True)
        found = load_file(out / WEIGHTS)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value.to(dtype)) for key, value in expected.items())
        assert {value.dtype for value in found.values()} == {dtype}


def cut_first(value: torch.Tensor) -> torch.Tensor:
    return value[1:].clone()


def put(bad: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda value: value.flatten().index_fill(0, torch.tensor([3]), bad).view_as(value)


KEY = "down_blocks.2.attentions.1.transformer_blocks.6.attn2.to_k.weight"  # block 3 of the student
DAMAGE = {
    "missing": (None, f"lacks 1 of the 1680 tensors that its configuration asks for, such as '{KEY}'"),
    "shape": (cut_first, f"'{KEY}' has shape [15, 96], its configuration asks for [16, 96]"),
    "nan": (put(torch.nan), f"tensor '{KEY}' has 1 values that are NaN or infinite"),
    "infinite": (put(-torch.inf), f"tensor '{KEY}' has 1 values that are NaN or infinite"),
}


@pytest.mark.parametrize(("change", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_tensor_is_named_and_nothing_written(
    change: Callable[[torch.Tensor], torch.Tensor] | None,
    message: str,
    teacher_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = with_unet(teacher_folder, tmp_path / "teacher", tiny_unet("sdxl"))
    tensors = load_file(folder / "unet" / WEIGHTS)
    value = tensors.pop(KEY)
    save_file(tensors | ({KEY: change(value)} if change else {}), folder / "unet" / WEIGHTS)
    assert main(["prune", "ssd-1b", "--teacher", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """While open, writing past `size` bytes of a file fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [300_000, 20])
def test_a_full_disk_is_an_error_and_nothing_is_left(
    size: int, teacher_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with files_of_at_most(size):  # too little for the UNet; too little for the configuration
        code = main(["prune", "vega", "--teacher", str(teacher_folder), "--out", str(out), "--unet-only"])
    assert code == 2
    said = capsys.readouterr().err
    assert f"cannot write the student to {out}: " in said
    assert "File too large" in said
    assert "Make room, or name another folder with --out" in said
    assert list(tmp_path.iterdir()) == []
