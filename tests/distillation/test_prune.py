from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny import tiny_unet

from distillation.cut import MIDDLE_ATTENTION, Cut
from distillation.prune import key_map, prune, student_config
from distillation.recipe import load_recipe
from sdbench.errors import UserError
from sdbench.models.architectures import depths, resnet_counts, unet_config
from sdbench.models.loading import build_on_meta

# Computed, and stated by the model cards.
PARAMETERS = {"ssd-1b": 1_331_334_404, "vega": 745_225_604, "koala-1b": 1_161_184_324, "koala-700m": 782_822_724}
IN_STAGES = ("ssd-1b", "vega")


def whole(unet: UNet2DConditionModel) -> Cut:
    return Cut({path: tuple(range(depth)) for path, depth in depths(unet.config).items()}, 0)


@torch.no_grad()
def answer(unet: UNet2DConditionModel, channels: int = 96) -> torch.Tensor:
    chance = torch.Generator().manual_seed(0)
    conditions = {"text_embeds": torch.randn(2, 64, generator=chance), "time_ids": torch.ones(2, 6)}
    latents, text = torch.randn(2, 4, 8, 8, generator=chance), torch.randn(2, 5, channels, generator=chance)
    sample: torch.Tensor = unet(latents, torch.tensor([3, 700]), text, added_cond_kwargs=conditions).sample
    return sample


@pytest.mark.parametrize("name", PARAMETERS)
def test_full_size_students_have_their_parameters_and_stock_keys(name: str) -> None:
    cut = load_recipe(name).cuts[-1]
    student = prune(build_on_meta("unet", unet_config("sdxl")), cut)
    assert sum(parameter.numel() for parameter in student.parameters()) == PARAMETERS[name]
    keys, stock = student.state_dict().keys(), build_on_meta("unet", unet_config(name))
    assert keys == stock.state_dict().keys()
    sources = key_map(keys, cut)
    assert sources.keys() == keys
    assert len(set(sources.values())) == len(keys)  # no tensor of the teacher is used twice
    assert {field: student.config[field] for field in unet_config(name)} == {field: stock.config[field] for field in unet_config(name)}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_same_recipe_cuts_the_embedded_teacher(name: str) -> None:
    student = prune(build_on_meta("unet", unet_config("sdxl", "scenes")), load_recipe(name).cuts[-1])
    assert {key: tuple(value.shape) for key, value in student.state_dict().items()} == {
        key: tuple(value.shape) for key, value in build_on_meta("unet", unet_config(name, "scenes")).state_dict().items()
    }


def test_the_key_map_follows_the_cut() -> None:
    ending = "attn1.to_q.weight"
    keys = [
        f"down_blocks.2.attentions.1.transformer_blocks.3.{ending}",
        f"up_blocks.0.attentions.2.transformer_blocks.9.{ending}",
        "mid_block.resnets.0.conv1.weight",
        "down_blocks.2.attentions.1.proj_in.weight",
    ]
    recipe = load_recipe("ssd-1b")
    expected = [f"down_blocks.2.attentions.1.transformer_blocks.6.{ending}", *keys[1:]]
    assert list(key_map(keys, recipe.cuts[-1]).values()) == expected
    other = Cut(recipe.cuts[-1].blocks, mid_resnet=1)
    assert key_map(keys, other)[keys[2]] == "mid_block.resnets.1.conv1.weight"


def test_keeping_all_blocks_keeps_the_output() -> None:
    teacher = tiny_unet("sdxl").eval()
    assert torch.equal(answer(prune(teacher, whole(teacher))), answer(teacher))


@pytest.mark.parametrize("name", IN_STAGES)
def test_cutting_blocks_that_do_nothing_keeps_the_output(name: str) -> None:
    teacher, cut = tiny_unet("sdxl").eval(), load_recipe(name).cuts[-1]
    with torch.no_grad():
        for path, depth in depths(teacher.config).items():
            for block in set(range(depth)) - set(cut.blocks.get(path, ())):
                gone = teacher.get_submodule(f"{path}.transformer_blocks.{block}")
                for output in (gone.attn1.to_out[0], gone.attn2.to_out[0], gone.ff.net[2]):
                    output.weight.zero_(), output.bias.zero_()
        for output in (teacher.mid_block.attentions[0].proj_out, teacher.mid_block.resnets[1].conv2):
            output.weight.zero_(), output.bias.zero_()
    assert torch.allclose(answer(prune(teacher, cut)), answer(teacher), atol=1e-5)


def test_the_student_holds_copies() -> None:
    teacher = tiny_unet("sdxl").eval()
    before = answer(teacher)
    student = prune(teacher, load_recipe("vega").cuts[-1])
    assert all(parameter.requires_grad for parameter in student.parameters())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert torch.equal(answer(teacher), before)


def test_later_layers_of_a_shortened_up_block_move_up() -> None:
    cut = load_recipe("koala-700m").cuts[-1]
    keys = [
        "up_blocks.0.resnets.1.conv1.weight",
        "up_blocks.1.attentions.1.transformer_blocks.1.ff.net.2.bias",
        "up_blocks.0.upsamplers.0.conv.bias",
    ]
    sources = ["up_blocks.0.resnets.2.conv1.weight", "up_blocks.1.attentions.2.transformer_blocks.1.ff.net.2.bias", keys[2]]
    assert list(key_map(keys, cut).values()) == sources
    assert [cut.student_path(path) for path in ("up_blocks.0.resnets.2", "up_blocks.0.attentions.1", "mid_block")] == [
        "up_blocks.0.resnets.1",
        None,
        None,
    ]
    assert load_recipe("koala-1b").cuts[-1].student_path("mid_block") == "mid_block"


def test_resnet_that_does_not_fit_its_new_place_is_refused() -> None:
    teacher = build_on_meta("unet", unet_config("sdxl", "scenes"))
    rows = [("down_blocks.*", (0,)), ("up_blocks.0", (0, 2)), ("up_blocks.1", (1, 2)), ("up_blocks.2", (0, 2))]
    cut = whole(teacher).keep_resnets(rows, resnet_counts(teacher.config), "here")
    with pytest.raises(UserError, match=r"'up_blocks\.1\.resnets\.1\..*' of shape .* 'up_blocks\.1\.resnets\.0\..*; keep another resnet"):
        prune(teacher, cut)


def test_resnets_that_no_config_can_express_are_refused() -> None:
    teacher = unet_config("sdxl")
    cut = Cut(dict.fromkeys(depths(teacher), (0,)), 0, {"down_blocks.2": (0,)})
    with pytest.raises(UserError, match="an up block has one more than the down block across from it"):
        student_config(teacher, replace(cut, blocks={path: kept for path, kept in cut.blocks.items() if cut.student_path(path)}))


@pytest.mark.parametrize("name", IN_STAGES)
def test_cutting_in_stages_equals_cutting_at_once(name: str) -> None:
    teacher, cuts = tiny_unet("sdxl").eval(), load_recipe(name).cuts
    between = prune(teacher, cuts[0])
    assert depths(between.config) == cuts[0].depths
    staged, straight = prune(between, cuts[1].relative_to(cuts[0])).state_dict(), prune(teacher, cuts[1]).state_dict()
    assert staged.keys() == straight.keys()
    assert all(torch.equal(staged[key], straight[key]) for key in staged)


def test_another_teacher_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"the teacher has no 'down_blocks.1.attentions.0.transformer_blocks.1.norm1.weight', which the cut keeps"
    ):
        prune(tiny_unet("vega"), Cut(load_recipe("ssd-1b").cuts[-1].blocks, 0))
    with pytest.raises(UserError, match=f"the teacher has no attention {MIDDLE_ATTENTION!r}"):
        prune(tiny_unet("vega"), whole(tiny_unet("sdxl")))


def test_depths_that_no_config_can_express_are_refused() -> None:
    teacher = unet_config("sdxl")
    blocks = {path: tuple(range(depth)) for path, depth in depths(teacher).items()} | {"down_blocks.2.attentions.0": (0, 1)}
    with pytest.raises(UserError, match="remove the middle's attention in the same stage or before"):
        student_config(teacher, Cut(blocks, 0))
