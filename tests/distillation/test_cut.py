from dataclasses import replace
from typing import Any

import pytest

from distillation.cut import Cut, matches
from distillation.prune import student_config
from distillation.recipe import load_recipe
from sdbench.models.architectures import unet_config
from sdbench.models.loading import build_on_meta


def test_a_cut_relative_to_another_numbers_that_ones_blocks() -> None:
    first = Cut({"a": (0, 1, 2, 6), "mid_block.attentions.0": (0,)}, 1)
    assert Cut({"a": (0, 6)}, 1).relative_to(first) == Cut({"a": (0, 3)}, 1)
    assert Cut({"a": (6,)}, 1).relative_to(Cut({"a": (2, 6)}, 1)) == Cut({"a": (1,)}, 0)
    shorter = Cut({"up_blocks.0.attentions.2": (3, 4)}, "none", {"up_blocks.0": (0, 2)})
    least = Cut({"up_blocks.0.attentions.2": (4,)}, "none", {"up_blocks.0": (2,)})
    assert least.relative_to(shorter) == Cut({"up_blocks.0.attentions.1": (1,)}, "none", {"up_blocks.0": (1,)})


def test_a_pattern_matches_part_by_part() -> None:
    assert matches("up_blocks.*.attentions.[01]", "up_blocks.2.attentions.1")
    assert not matches("up_blocks.*.attentions.[01]", "up_blocks.2.attentions.2")
    assert not matches("up_blocks.*", "up_blocks.0.attentions.0")


@pytest.mark.parametrize("resnet", [0, 1, "none"])
@pytest.mark.parametrize("name", ["vega", "koala-700m"])
def test_each_module_of_a_student_is_that_of_the_teacher_from_which_it_came(name: str, resnet: Any) -> None:
    teacher, cut = unet_config("sdxl", "scenes"), replace(load_recipe(name).cuts[-1], mid_resnet=resnet)
    paths, own_paths = (
        [path for path, _ in build_on_meta("unet", config).named_modules() if "transformer_blocks" not in path]
        for config in (teacher, student_config(teacher, cut))
    )
    assert [cut.student_path(cut.teacher_path(own)) for own in own_paths] == own_paths
    kept = {path: own for path in paths if (own := cut.student_path(path)) is not None}
    assert [cut.teacher_path(own) for own in kept.values()] == list(kept)
    assert [number for number in (0, 1) if f"mid_block.resnets.{number}" in kept] == ([] if resnet == "none" else [resnet])
