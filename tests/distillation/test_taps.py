import pytest
import torch
from tiny import tiny_unet

from distillation.cut import Cut
from distillation.losses import feature_loss
from distillation.prune import prune
from distillation.recipe import load_recipe
from distillation.taps import collect_outputs, resolve_taps
from sdbench.errors import UserError
from sdbench.models.architectures import unet_config
from sdbench.models.loading import build_on_meta
from sdbench.probes.work import empty_input

RECIPE = load_recipe("vega")
SAME = Cut({}, 0)  # moves no layer


def paths_and_shapes() -> dict[str, tuple[int, ...]]:
    taps = resolve_taps(unet_config("vega", "scenes"), unet_config("sdxl", "scenes"), RECIPE.cuts[-1], RECIPE.taps)
    assert all(tap.student == tap.teacher for tap in taps)
    return {tap.teacher: tap.shape for tap in taps}


def test_the_26_pairs_of_the_official_script() -> None:
    found = paths_and_shapes()
    resnets = {f"down_blocks.{block}.resnets.{k}" for block in range(3) for k in range(2)} | {
        f"up_blocks.{block}.resnets.{k}" for block in range(3) for k in range(3)
    }
    attentions = {f"down_blocks.{block}.attentions.{k}" for block in (1, 2) for k in range(2)} | {
        f"up_blocks.{block}.attentions.{k}" for block in (0, 1) for k in range(3)
    }
    assert found.keys() == resnets | attentions | {"mid_block"}
    assert len(found) == 26
    assert found["mid_block"] == (1, 64, 4, 4)
    assert found["up_blocks.2.resnets.2"] == (1, 16, 16, 16)


def test_every_transformer_block_can_be_tapped() -> None:
    config = unet_config("vega", "scenes")
    unet = build_on_meta("unet", config)
    paths = [path for path, _ in unet.named_modules() if path]
    with torch.device("meta"), collect_outputs(unet, paths) as outputs:
        unet(**empty_input(config, config["sample_size"], 1))
        called = {path: tuple(outputs[path].shape) for path in paths if path in outputs}
    patterns = [".".join("*" * (1 + depth)) for depth in range(1 + max(path.count(".") for path in paths))]
    assert {tap.teacher: tap.shape for tap in resolve_taps(config, config, SAME, patterns)} == called
    assert any(".transformer_blocks.1." in path for path in called)


@pytest.mark.parametrize(("name", "pairs"), [("koala-1b", 16), ("koala-700m", 15)])
def test_a_shortened_student_has_taps_only_for_what_it_kept(name: str, pairs: int) -> None:
    recipe = load_recipe(name)
    taps = resolve_taps(unet_config(name), unet_config("sdxl"), recipe.cuts[-1], recipe.taps)
    assert len({tap.student for tap in taps}) == len({tap.teacher for tap in taps}) == pairs
    moved = {tap.student: tap.teacher for tap in taps if tap.student != tap.teacher}
    expected = {f"up_blocks.{block}.{part}.1": f"up_blocks.{block}.{part}.2" for block in (0, 1) for part in ("resnets", "attentions")}
    assert moved == expected | {"up_blocks.2.resnets.1": "up_blocks.2.resnets.2"}


def test_the_students_middle_block_is_a_single_resnet() -> None:
    student = prune(tiny_unet("sdxl"), RECIPE.cuts[-1])
    latents, conditions = torch.randn(1, 4, 8, 8), {"text_embeds": torch.randn(1, 64), "time_ids": torch.ones(1, 6)}
    with torch.no_grad(), collect_outputs(student, ["mid_block", "mid_block.resnets.0"]) as outputs:
        student(latents, 5, torch.randn(1, 5, 96), added_cond_kwargs=conditions)
        assert torch.equal(outputs["mid_block"], outputs["mid_block.resnets.0"])


def test_an_identical_copy_has_no_feature_loss_and_a_changed_one_has() -> None:
    teacher = tiny_unet("vega")
    taps = resolve_taps(teacher.config, teacher.config, SAME, RECIPE.taps)
    paths = [tap.teacher for tap in taps]
    copy = tiny_unet("vega")
    latents, conditions = torch.randn(1, 4, 8, 8), {"text_embeds": torch.randn(1, 64), "time_ids": torch.ones(1, 6)}
    text = torch.randn(1, 5, 96)
    with torch.no_grad(), collect_outputs(teacher, paths) as taught, collect_outputs(copy, paths) as learned:
        teacher(latents, 5, text, added_cond_kwargs=conditions)
        copy(latents, 5, text, added_cond_kwargs=conditions)
        assert feature_loss(taps, learned, dict(taught), "none") == 0
        copy.up_blocks[2].resnets[2].conv2.bias += 1
        copy(latents, 5, text, added_cond_kwargs=conditions)
        assert feature_loss(taps, learned, taught, "none").item() == pytest.approx(1, rel=1e-4)  # only the last tap moved, by 1


def test_hooks_are_removed_even_after_an_error() -> None:
    unet = tiny_unet("vega")
    with pytest.raises(RuntimeError, match="stop"), collect_outputs(unet, ["mid_block"]):
        raise RuntimeError("stop")
    assert not any(module._forward_hooks for module in unet.modules())


def test_a_tap_without_a_module_is_named() -> None:
    sdxl, vega = unet_config("sdxl", "scenes"), unet_config("vega", "scenes")
    with pytest.raises(UserError, match=r"'mid_blok'; did you mean 'mid_block'"):
        resolve_taps(vega, sdxl, SAME, ["mid_blok"])
    with pytest.raises(UserError, match=r"tap mid_block.attentions.0: the teacher has it, the student does not"):
        resolve_taps(vega, sdxl, SAME, ["mid_block.attentions.*"])


def test_outputs_of_unequal_shape_are_refused() -> None:
    sdxl, vega = unet_config("sdxl", "scenes"), unet_config("vega", "scenes")
    wider = vega | {"block_out_channels": [16, 32, 128]}
    with pytest.raises(UserError, match=r"tap mid_block: the student's output is \(1, 128, 4, 4\), the teacher's \(1, 64, 4, 4\)"):
        resolve_taps(wider, sdxl, SAME, ["mid_block"])
