from distillation.plan import Plan, matches


def test_a_plan_relative_to_another_numbers_that_ones_blocks() -> None:
    first = Plan({"a": (0, 1, 2, 6), "mid_block.attentions.0": (0,)}, 1)
    assert Plan({"a": (0, 6)}, 1).relative_to(first) == Plan({"a": (0, 3)}, 1)
    assert Plan({"a": (6,)}, 1).relative_to(Plan({"a": (2, 6)}, 1)) == Plan({"a": (1,)}, 0)
    shorter = Plan({"up_blocks.0.attentions.2": (3, 4)}, "none", {"up_blocks.0": (0, 2)})
    least = Plan({"up_blocks.0.attentions.2": (4,)}, "none", {"up_blocks.0": (2,)})
    assert least.relative_to(shorter) == Plan({"up_blocks.0.attentions.1": (1,)}, "none", {"up_blocks.0": (1,)})


def test_a_pattern_matches_part_by_part() -> None:
    assert matches("up_blocks.*.attentions.[01]", "up_blocks.2.attentions.1")
    assert not matches("up_blocks.*.attentions.[01]", "up_blocks.2.attentions.2")
    assert not matches("up_blocks.*", "up_blocks.0.attentions.0")
