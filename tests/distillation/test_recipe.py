from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillation.recipe import RECIPES, Recipe, Segment, load_recipe, shipped_recipes
from sdbench.disk import read_json
from sdbench.errors import UserError
from sdbench.models.architectures import Family, depths, unet_config

SSD_1B = load_recipe("ssd-1b")


@pytest.mark.parametrize("name", ["ssd-1b", "vega", "koala-1b", "koala-700m"])
def test_a_shipped_recipe_ends_at_its_student_and_names_its_sources(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.cuts[-1].depths == depths(unet_config(name))
    assert all(row.source for stage in recipe.stages for row in stage.keep)
    assert all(row.source for stage in recipe.stages for row in stage.shorten or ())


def test_full_size_training_is_as_the_recipes_state() -> None:
    """Steps, learning rate, batch and accumulation; each file says which of them a model card states."""
    training = {name: load_recipe(name).settings("sdxl") for name in shipped_recipes()}
    assert {name: (each.steps, each.lr, each.batch, each.accumulation) for name, each in training.items()} == {
        "koala-1b": (500_000, 1e-5, 16, 8),
        "koala-700m": (500_000, 1e-5, 16, 8),
        "ssd-1b": (251_000, 1e-5, 16, 8),
        "vega": (540_000, 1e-5, 16, 8),
    }


@pytest.mark.parametrize("name", shipped_recipes())
def test_eight_gpus_can_share_a_step_of_a_shipped_recipe(name: str) -> None:
    settings = load_recipe(name).settings("sdxl")
    assert (settings.accumulation % 8, settings.batch * settings.accumulation) == (0, 128)


def test_ssd_1b_keeps_what_its_released_weights_show() -> None:
    assert SSD_1B.cuts[-1].blocks == {
        "down_blocks.1.attentions.0": (0, 1),
        "down_blocks.1.attentions.1": (0, 1),
        "down_blocks.2.attentions.0": (0, 1, 2, 6),
        "down_blocks.2.attentions.1": (0, 1, 2, 6),
        "up_blocks.0.attentions.0": (0, 1, 2, 6),
        "up_blocks.0.attentions.1": (0, 1, 2, 6),
        "up_blocks.0.attentions.2": tuple(range(10)),
        "up_blocks.1.attentions.0": (0, 1),
        "up_blocks.1.attentions.1": (0,),
        "up_blocks.1.attentions.2": (0,),
    }


def test_the_digest_ignores_comments(tmp_path: Path) -> None:
    text = (RECIPES / "vega.toml").read_text(encoding="utf-8")
    (tmp_path / "other.toml").write_text(f"# a comment\n{text}", encoding="utf-8")
    assert load_recipe(tmp_path / "other.toml").digest == load_recipe("vega").digest
    (tmp_path / "other.toml").write_text(text.replace("output = 0.5", "output = 0.25"), encoding="utf-8")
    assert load_recipe(tmp_path / "other.toml").digest != load_recipe("vega").digest


def test_the_default_lr_decay_does_not_change_the_digest(tmp_path: Path) -> None:
    text, line = (RECIPES / "vega.toml").read_text(encoding="utf-8"), 'lr_decay = "cosine"\n'
    assert line in text
    (tmp_path / "silent.toml").write_text(text.replace(line, ""), encoding="utf-8")
    assert load_recipe(tmp_path / "silent.toml").digest == load_recipe("vega").digest
    (tmp_path / "other.toml").write_text(text.replace(line, 'lr_decay = "none"\n'), encoding="utf-8")
    assert load_recipe(tmp_path / "other.toml").training_digest("scenes") != load_recipe("vega").training_digest("scenes")


BAD = {
    "misspelt key": ("feature = 0.5", "features = 0.5", "bad.toml: unknown key in [loss] 'features'; did you mean 'feature'?"),
    "misspelt key in a row": ("blocks = []", "block = []", "did you mean 'blocks'?"),
    "no such block": ("blocks = [0, 1, 2, 6]", "blocks = [0, 1, 2, 10]", "down_blocks.2.attentions.0 has no block 10; it has 0, 1, 2"),
    "block gone before": (
        "blocks = [0, 6]",
        "blocks = [0, 7]",
        "down_blocks.2.attentions.0 has no block 7; it has 0, 1, 2, 6 at this stage",
    ),
    "no such attention": ("up_blocks.1.attentions.*", "up_blocks.2.attentions.*", "'up_blocks.2.attentions.*'; did you mean 'up_blocks."),
    "order": ("blocks = [0, 6]", "blocks = [6, 0]", "keeps [6, 0]; expected each block once, in rising order"),
    "twice": ("blocks = [0, 6]", "blocks = [0, 0]", "expected each block once"),
    "nothing left": ("blocks = [0, 6]", "blocks = []", "only mid_block.attentions.0 can be removed"),
    "two rows": ("down_blocks.1.attentions.*", "down_blocks.2.attentions.1", "two rows name down_blocks.2.attentions.1"),
    "wrong end": (
        "blocks = [0, 6]",
        "blocks = [0, 1, 6]",
        "does not end at vega; transformer blocks kept: down_blocks.2.attentions.0 3 (expected 2)",
    ),
    "wrong middle": ("resnet = 0", 'resnet = "none"', "does not end at vega; middle kept: mid_block None (expected UNetMidBlock2D)"),
    "two stages of one name": (
        'name = "depth"',
        'name = "half"',
        "recipe 'vega': two stages are named 'half'; give each a name of its own",
    ),
    "shares": ("share = 0.9", "share = 0.8", "the shares of its stages sum to 0.9; expected 1"),
    "shares of teachers": ("share = 0.5", "share = 0.4", "the shares of its teachers sum to 0.9; expected 1"),
    "student": ('student = "vega"', 'student = "vegas"', "did you mean 'vega'? For a shape of your own, leave `student` out of the recipe"),
    "own shape": ("blocks = [0, 6]", "blocks = [0]", "(expected 2). For a shape of your own, leave `student` out of the recipe"),
    "teacher": ('teacher = "sdxl"', 'teacher = "xl"', "unknown architecture 'xl'; did you mean 'sdxl'?"),
    "number": ("lr = 1e-3", "lr = -1", "scenes.lr: Input should be greater than 0 (found -1)"),
    "a number for a list": ("blocks = [0, 6]", "blocks = 6", "bad.toml: stages.1.keep.1.blocks: Input should be a valid tuple (found 6)"),
    "syntax": ("[loss]", "[loss", "is not valid TOML"),
}


BAD_RESNETS = {
    "no such resnet": ("resnets = [0]", "resnets = [2]", "down_blocks.0 has no resnet 2; it has 0, 1 at this stage"),
    "no such block": (
        '"up_blocks.2"',
        '"up_blocks.3"',
        "unknown block in recipe 'koala-700m', stage 'depth' 'up_blocks.3'; did you mean 'up_blocks.",
    ),
    "none": ("resnets = [0]", "resnets = []", "down_blocks.0 keeps no resnet"),
    "attention that went": ("up_blocks.1.attentions.*", "up_blocks.1.attentions.1", "unknown attention in recipe 'koala-700m'"),
    "wrong end": ("resnets = [0]", "resnets = [0, 1]", "does not end at koala-700m; resnets kept: down_blocks.0 2 (expected 1)"),
    "misspelt": ("resnets = [0]", "resnet = [0]", "did you mean 'resnets'?"),
}


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [*(("vega", *row) for row in BAD.values()), *(("koala-700m", *row) for row in BAD_RESNETS.values())],
    ids=[*BAD, *(f"resnets: {what}" for what in BAD_RESNETS)],
)
def test_an_invalid_recipe_is_refused_with_the_reason(tmp_path: Path, name: str, old: str, new: str, message: str) -> None:
    text = (RECIPES / f"{name}.toml").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "bad.toml").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_recipe(tmp_path / "bad.toml")
    assert message in str(error.value)


def test_the_rows_of_a_recipe_without_a_named_student_are_checked_too(tmp_path: Path) -> None:
    text = (RECIPES / "vega.toml").read_text(encoding="utf-8").replace('student = "vega"\n', "", 1)
    (tmp_path / "own.toml").write_text(text, encoding="utf-8")
    assert load_recipe(tmp_path / "own.toml").student is None
    (tmp_path / "own.toml").write_text(text.replace("blocks = [0, 6]", "blocks = [0, 7]", 1), encoding="utf-8")
    with pytest.raises(UserError, match=r"down_blocks\.2\.attentions\.0 has no block 7"):
        load_recipe(tmp_path / "own.toml")


@pytest.mark.parametrize(("family", "other"), [("scenes", "sdxl"), ("sdxl", "scenes")])
def test_the_settings_of_one_family_are_enough(family: Family, other: Family, write_one_family: Callable[[Family], Path]) -> None:
    path = write_one_family(family)
    recipe, both = load_recipe(path), load_recipe("vega").model_copy(update={"name": path.stem})
    assert recipe.families == (family,)
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe, "as a run's folder keeps it"
    assert recipe.settings(family) == both.settings(family)
    assert recipe.training_digest(family) == both.training_digest(family)
    with pytest.raises(UserError) as error:
        recipe.settings(other)
    assert str(error.value) == (
        f"recipe 'only-{family}' has no table [{other}], the settings of family {other!r}. Copy that of a shipped recipe, such as "
        f"{RECIPES / 'vega.toml'}, name another recipe, or, for `run` and `plan`, choose --family {family}"
    )


def test_a_recipe_without_settings_of_any_family_says_what_to_copy(tmp_path: Path) -> None:
    text = (RECIPES / "vega.toml").read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(text[: text.index("[scenes]")], encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_recipe(tmp_path / "mine.toml")
    assert str(error.value) == (
        f"recipe {tmp_path / 'mine.toml'}: neither a table [scenes] nor a table [sdxl]; a recipe has one for each family that it trains: "
        f"copy that of a shipped recipe, such as {RECIPES / 'vega.toml'}"
    )
    (tmp_path / "mine.toml").write_text(text.replace("[scenes]", "[scene]"), encoding="utf-8")
    with pytest.raises(UserError, match="unknown key 'scene'; did you mean 'scenes'"):
        load_recipe(tmp_path / "mine.toml")


def test_a_recipe_of_the_embedded_family_alone_names_no_teachers(write_one_family: Callable[[Family], Path]) -> None:
    recipe = load_recipe(write_one_family("scenes"))
    assert recipe.teacher_shares(1) == [1.0]
    with pytest.raises(UserError, match=r"^3 teachers for recipe 'only-scenes', which names none; give one$"):
        recipe.segments(100, 3)


def test_a_missing_recipe_is_an_error() -> None:
    with pytest.raises(UserError, match="unknown recipe 'ssd1b'; did you mean 'ssd-1b'"):
        load_recipe("ssd1b")
    with pytest.raises(
        UserError, match=r"no recipe at nowhere\.toml; name a file, or a shipped recipe: koala-1b, koala-700m, ssd-1b, vega"
    ):
        load_recipe("nowhere.toml")


def test_a_recipe_of_ones_own_without_its_suffix_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nobodys.toml").touch()
    with pytest.raises(UserError, match=r"unknown recipe 'nobodys'; did you mean the file 'nobodys\.toml'\?"):
        load_recipe("nobodys")


def test_a_folder_or_a_file_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(UserError, match=r"no recipe at .*folder\.toml"):
        load_recipe(tmp_path / "folder.toml")
    (tmp_path / "own.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(UserError, match=r"own\.toml is not valid TOML"):
        load_recipe(tmp_path / "own.toml")


def test_name_of_a_recipe_cannot_be_a_path(tmp_path: Path) -> None:
    for name in ("..", "../x"):
        (tmp_path / "own.toml").write_text(
            (RECIPES / "vega.toml").read_text(encoding="utf-8").replace('name = "vega"', f'name = "{name}"', 1), encoding="utf-8"
        )
        with pytest.raises(UserError, match="name: String should match pattern"):
            load_recipe(tmp_path / "own.toml")


@given(st.integers(10, 10**6))
def test_stage_steps_sum_to_all_steps(steps: int) -> None:
    counts = SSD_1B.stage_steps(steps)
    assert sum(counts) == steps
    assert all(abs(count - steps * stage.share) <= 1 for count, stage in zip(counts, SSD_1B.stages, strict=True))


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(UserError, match=r"4 steps are too few for the 2 stages .*, found \[0, 4\]\. --steps 6 is enough"):
        SSD_1B.stage_steps(4)
    assert SSD_1B.stage_steps(6) == [1, 5]


def test_a_recipe_is_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe.__setattr__(SSD_1B, "name", "other")


def test_a_segment_has_one_stage_and_one_teacher() -> None:
    assert SSD_1B.segments(100, 1) == [Segment(0, 0, 0, 10), Segment(1, 0, 10, 100)]
    assert SSD_1B.segments(100, 3) == [Segment(0, 0, 0, 10), Segment(1, 0, 10, 50), Segment(1, 1, 50, 75), Segment(1, 2, 75, 100)]
    with pytest.raises(UserError, match=r"2 teachers for recipe 'ssd-1b', which names 3 \(stabilityai/.*, .*, .*\); give one, or all"):
        SSD_1B.segments(100, 2)


def test_a_run_that_starts_in_a_later_stage_shares_its_steps_among_those_that_are_left() -> None:
    assert SSD_1B.segments(100, 1, first_stage=1) == [Segment(1, 0, 0, 100)]
    assert SSD_1B.segments(100, 3, first_stage=1) == [Segment(1, 0, 0, 50), Segment(1, 1, 50, 75), Segment(1, 2, 75, 100)]
    stages = tuple(SSD_1B.stages[0].model_copy(update={"share": share}) for share in (0.2, 0.2, 0.6))
    three = SSD_1B.model_copy(update={"stages": stages})
    assert three.stage_steps(100, first_stage=1) == [25, 75]
    assert three.stage_steps(100) == [20, 20, 60]
    with pytest.raises(UserError, match="1 steps are too few for the 2 stages"):
        three.stage_steps(1, first_stage=1)


@given(st.integers(10, 10**6), st.sampled_from([1, 3]))
def test_segments_cover_all_steps_without_gaps(steps: int, teachers: int) -> None:
    segments = SSD_1B.segments(steps, teachers)
    assert [segment.start for segment in segments] == [0, *(segment.end for segment in segments[:-1])]
    assert segments[-1].end == steps
    assert all(segment.start < segment.end for segment in segments)


@pytest.mark.parametrize("family", ["scenes", "sdxl"])
def test_gradient_checkpointing_does_not_change_the_training_digest(family: Family) -> None:
    def digest(*, checkpointing: bool) -> str:
        settings = SSD_1B.settings(family).model_copy(update={"checkpointing": checkpointing})
        return SSD_1B.model_copy(update={family: settings}).training_digest(family)

    assert digest(checkpointing=True) == digest(checkpointing=False)


def test_the_training_digest_stays_that_of_the_ablation() -> None:
    folder = Path(__file__).parents[2] / "results" / "ablation"
    result = read_json(folder / "vega" / "layer-level-0.json")
    assert load_recipe(folder / "vega.toml").training_digest("scenes") == result["identity"]["recipe"]


@pytest.mark.parametrize(("name", "digest"), [("ssd-1b", "c93db7ad3de1250f"), ("vega", "3432e137d241f576")])
def test_the_embedded_students_are_trained_as_those_that_were_measured(name: str, digest: str) -> None:
    assert load_recipe(name).training_digest("scenes")[:16] == digest


def test_the_training_digest_ignores_the_other_family() -> None:
    other = SSD_1B.model_copy(update={"sdxl": SSD_1B.settings("sdxl").model_copy(update={"lr": 1.0})})
    assert other.training_digest("scenes") == SSD_1B.training_digest("scenes")
    assert other.training_digest("sdxl") != SSD_1B.training_digest("sdxl")


def test_images_held_out_are_not_among_those_that_are_seen() -> None:
    settings = SSD_1B.settings("sdxl").model_copy(update={"validation": 256, "batch": 10, "accumulation": 1})
    assert settings.describe_epochs(10_256, 1000) == "10,000 images, each seen 1.0 times on average"
    assert settings.describe_epochs(1000, 90) == "900 images, each seen 1.0 times on average", "a tenth at most"
