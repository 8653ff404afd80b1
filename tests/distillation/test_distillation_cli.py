import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from distillation.cli import main
from distillation.commands import students
from distillation.commands.options import training_device
from distillation.recipe import load_recipe
from distillation.recipe_tables import ScenesTraining
from sdbench.disk import size_text, write_json_lines
from sdbench.errors import UserError
from sdbench.models.architectures import Family, unet_config
from sdbench.models.loading import build_on_meta


@pytest.mark.usefixtures("fake_estimates")
def test_plan_prints_counts_blocks_and_taps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "ssd-1b"]) == 0
    said = capsys.readouterr().out
    expected = sum(parameter.numel() for parameter in build_on_meta("unet", unet_config("ssd-1b", "scenes")).parameters())
    steps = round(0.9 * load_recipe("ssd-1b").settings("scenes").steps)
    assert f"stage depth: {steps:,} steps, {expected:,} parameters, 34 transformer blocks" in said
    assert "  down_blocks.2.attentions.* keeps 0, 1, 2, 6  (furusu/SSD-1B-anime" in said
    assert "taps: 26" in said
    assert "  mid_block <- mid_block 64 x 4 x 4" in said
    assert "loss: task 1.0, output 0.5, feature 0.5, scale none" in said
    assert "starts with a new AdamW; lr rises for 25 steps to 0.001, then falls to zero along a half cosine" in said
    assert "GPU hours" not in said
    assert "cost" not in said


@pytest.mark.usefixtures("fake_estimates")
def test_plan_prints_memory_time_and_cost_first_and_taps_last(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "ssd-1b", "--family", "sdxl", "--usd-per-hour", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    begins = ("  memory", "  time: ", "  cost: ", "  disk: ", "teacher: ", "stage middle: ", "loss: ", "taps: 26 ")
    places = [next(place for place, line in enumerate(lines) if line.startswith(start)) for start in begins]
    assert places == sorted(places)
    assert places[-1] == len(lines) - 27
    assert "    before any image: 44.5 GB in stage middle, 29.1 GB in stage depth" in lines
    assert " GPU hours at 396 to 148 TFLOP/s, assumed: 40 to 15 % of an H100's 989 for dense bfloat16" in lines[places[1]]


@pytest.mark.usefixtures("fake_estimates")
def test_a_plan_as_json_has_the_numbers_of_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "ssd-1b", "--family", "sdxl", "--tflops", "200", "--usd-per-hour", "3", "--json"]) == 0
    said = capsys.readouterr()
    plan = json.loads(said.out)
    assert said.err == f"{plan['text']}\n"
    recipe = load_recipe("ssd-1b")
    assert [(stage["name"], stage["steps"]) for stage in plan["stages"]] == [
        (stage.name, steps) for stage, steps in zip(recipe.stages, recipe.stage_steps(recipe.settings("sdxl").steps), strict=True)
    ]
    student = build_on_meta("unet", unet_config("ssd-1b", "sdxl"))
    assert plan["stages"][-1]["parameters"] == sum(parameter.numel() for parameter in student.parameters())
    assert [round(stage["fixed_bytes"] / 1e9, 1) for stage in plan["stages"]] == [44.5, 29.1]
    assert plan["flops"] == sum(stage["steps"] * stage["flops_per_step"] for stage in plan["stages"])
    assert plan["gpu_hours"] == [plan["flops"] / 200e12 / 3600]
    assert plan["usd"] == [3 * plan["gpu_hours"][0]]
    assert plan["settings"]["steps"] == recipe.settings("sdxl").steps
    assert (len(plan["taps"]), plan["loss"]["feature"]) == (26, 0.5)
    assert main(["plan", "ssd-1b", "--family", "sdxl", "--steps", "1000", "--json"]) == 0
    fewer = json.loads(capsys.readouterr().out)
    assert [stage["steps"] for stage in fewer["stages"]] == recipe.stage_steps(1000)
    assert main(["plan", "ssd-1b", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["family"], plan["gpu_hours"], plan["usd"]) == ("scenes", None, None)
    assert plan["settings"].keys() == {*ScenesTraining.model_fields}, "those too that stay out of digests at their defaults"
    assert (plan["settings"]["lr_decay"], plan["settings"]["validation"]) == ("cosine", 0)


@pytest.mark.usefixtures("fake_estimates")
def test_a_recipe_of_one_family_trains_that_family_by_default(
    write_one_family: Callable[[Family], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    families: tuple[Family, ...] = ("scenes", "sdxl")
    for family in families:
        assert main(["plan", str(write_one_family(family))]) == 0
        assert capsys.readouterr().out.startswith(f"only-{family}: vega from sdxl, family {family}\n")
    assert main(["run", str(write_one_family("sdxl"))]) == 2
    assert "but the family to train is 'sdxl'; name another teacher with --teacher, such as sdxl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("sdxl", ["plan", "RECIPE", "--family", "scenes"]),
        ("sdxl", ["run", "RECIPE", "--family", "scenes", "--steps", "10"]),
        ("sdxl", ["run", "RECIPE", "--family", "scenes", "--steps", "10", "--dry-run"]),
        ("sdxl", ["ablate", "RECIPE", "--steps", "10"]),
        ("scenes", ["run", "RECIPE", "--family", "sdxl", "--teacher", "sdxl", "--data", "nowhere", "--steps", "10"]),
        ("scenes", ["sensitivity", "--like", "RECIPE", "--teacher", "sdxl", "--data", "nowhere"]),
    ],
)
def test_a_family_that_the_recipe_lacks_is_refused_before_any_work(
    family: Family,
    words: list[str],
    write_one_family: Callable[[Family], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = write_one_family(family)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("distillation.teacher.fetch", lambda *_, **__: pytest.fail("fetched"))
    assert main([str(recipe) if word == "RECIPE" else word for word in words]) == 2
    lacking = {"sdxl": "scenes", "scenes": "sdxl"}[family]
    assert f"distillation: recipe 'only-{family}' has no table [{lacking}], the settings of family" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == [recipe]


def test_prune_writes_a_pipeline(teacher_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", "vega", "--teacher", str(teacher_folder), "--out", str(tmp_path / "vega")]) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'vega'}\n"
    assert said.err.endswith(f"measure it: sdbench run --model {tmp_path / 'vega'} --name my-vega\n")
    assert StableDiffusionXLPipeline.from_pretrained(tmp_path / "vega").unet.config.mid_block_type == "UNetMidBlock2D"
    assert "not trained" in (tmp_path / "vega" / "README.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("fake_estimates")
def test_a_dry_run_checks_and_makes_nothing(teacher_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "run",
        "vega",
        "--teacher",
        str(teacher_folder),
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(tmp_path / "out"),
        "--dry-run",
    ]
    assert main([*arguments, "--steps", "10", "--export-every", "5"]) == 0
    said = capsys.readouterr().out
    size = 4 * sum(parameter.numel() for parameter in build_on_meta("unet", unet_config("vega", "scenes")).parameters())
    assert f"this run: students on the way: 1, {size_text(size)} of disk beside --out (half for a teacher in 16 bits)\n" in said
    assert "stage half: 1 steps (all of them warm-up, to 4% of lr), " in said
    assert "\n  steps = 10\n" in said
    assert f"this run: teachers {teacher_folder} (100% of the steps)\n" in said
    assert list(tmp_path.iterdir()) == []
    tuned = shutil.copytree(teacher_folder, tmp_path / "tuned")
    vae = tuned / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(vae).items()}, vae)
    assert main([*arguments, "--teacher", str(teacher_folder), "--teacher", str(tuned)]) == 0
    assert f"the teacher in {tuned} differs from the first one" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["run", "vega"], ["sensitivity"]])
def test_a_column_of_captions_or_a_share_of_images_without_data_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--caption-column", "text"]) == 2
    assert "--caption-column names a column of --data, which is not given" in capsys.readouterr().err
    assert main([*words, "--max-undecodable", "0"]) == 2
    assert "--max-undecodable is a share of --data, which is not given" in capsys.readouterr().err


@pytest.mark.usefixtures("datasets_cache")
@pytest.mark.parametrize("words", [["run", "vega", "--dry-run"], ["sensitivity"]])
@pytest.mark.parametrize(("more", "limit"), [([], 1), (["--max-undecodable", "0.2"], 20)])
def test_the_share_of_images_to_leave_out_is_chosen(
    words: list[str], more: list[str], limit: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"file_name": f"{row}.png", "text": "" if row == 3 else "a"} for row in range(4)]
    write_json_lines(tmp_path / "metadata.jsonl", rows)
    assert main([*words, "--data", str(tmp_path), *more]) == 2
    assert f"no caption in row 3 of {tmp_path.name}. At most {limit} % of 4 images may be left out" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_too_few_steps_are_refused_before_images_are_opened(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "vega", "--steps", "1", "--data", "nowhere", "--out", "nowhere", *more]) == 2
    assert "1 steps are too few for the 2 stages of recipe 'vega'" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["prune", "vega"], ["run", "vega", "--dry-run"], ["run", "vega"], ["sensitivity"]])
def test_a_teacher_with_a_damaged_tokenizer_is_refused_before_any_work(
    words: list[str], teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(teacher_folder, "teacher")
    Path("teacher/tokenizer_2/tokenizer.json").write_text("{", encoding="utf-8")
    assert main([*words, "--teacher", "teacher"]) == 2
    assert "teacher cannot be loaded (JSONDecodeError" in (said := capsys.readouterr().err)
    assert "copy its tokenizers and scheduler from the base pipeline" in said
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


@pytest.mark.parametrize(
    "words", [["prune", "vega"], ["run", "vega", "--family", "sdxl"], ["run", "vega", "--family", "sdxl", "--dry-run"]]
)
def test_a_teacher_that_the_recipe_does_not_cut_is_refused_before_it_is_fetched(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("distillation.teacher.fetch", lambda *_, **__: pytest.fail("fetched"))
    assert main([*words, "--teacher", "ssd-1b"]) == 2
    assert (
        "the teacher 'ssd-1b' has architecture 'ssd-1b'; recipe 'vega' cuts 'sdxl'. Name another with --teacher" in capsys.readouterr().err
    )


def test_a_user_error_goes_to_stderr_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "vegga"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "distillation: unknown recipe 'vegga'; did you mean 'vega'?\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_missing_device_is_refused(more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "vega", "--out", str(tmp_path / "out"), "--device", "cuda", *more]) == 2
    assert "distillation: no device 'cuda' here" in capsys.readouterr().err


def test_a_gpu_named_by_its_index_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = list[str]()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert [training_device(asked) for asked in ("cpu", "cuda", None, "cuda:1")] == ["cpu", "cuda", "cuda", "cuda"]
    assert chosen == ["cuda:1"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert training_device("cuda") == "cuda"
    with pytest.raises(UserError, match="a GPU of its own; name no index: --device cuda, not cuda:1"):
        training_device("cuda:1")


@pytest.mark.parametrize(
    ("accumulation", "said"),
    [(4, "training on 1 of 7 GPUs; to train on 4: torchrun --nproc-per-node 4 -m distillation run ...\n"), (1, "")],
)
def test_a_run_on_one_of_several_gpus_says_how_to_use_more_where_it_could(
    accumulation: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 7)
    students._suggest_more_gpus(accumulation)
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted; what was finished is kept"),
        (BrokenPipeError(), 2, ""),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            2,
            "distillation: No space left on device. What was finished is kept; put this right",
        ),
        (OSError(errno.EROFS, "Read-only file system", "log"), 2, "distillation: log: Read-only file system. What was finished is kept"),
    ],
)
def test_an_interruption_is_not_a_crash(
    error: BaseException, code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ends(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("distillation.train.distil", ends)
    assert main(["run", "vega", "--out", str(tmp_path / "out"), "--device", "cpu"]) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("steps", ["0", "-3", "many"])
def test_steps_must_be_a_whole_number(steps: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["run", "vega", "--out", "x", "--steps", steps])
    assert stopped.value.code == 2
    assert f"argument --steps: '{steps}' is not a whole number of at least 1" in capsys.readouterr().err


def test_an_unknown_arm_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["ablate", "vega", "--arm", "task onyl"])
    assert stopped.value.code == 2
    assert "argument --arm: invalid choice: 'task onyl' (choose from " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "called"),
    [
        (["sensitivity", "--bins", "1", "--batches", "2", "--images", "1"], "distillation.sensitivity.removal.measure_sensitivity"),
        (["ablate", "vega"], "distillation.ablation.experiment.run_sweep"),
    ],
)
@pytest.mark.parametrize(("more", "work"), [([], "mine/runs/distillation"), (["--work", "elsewhere"], "elsewhere")])
def test_intermediate_results_are_kept_with_the_results_unless_told_otherwise(
    words: list[str],
    called: str,
    more: list[str],
    work: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*given: object, **_: object) -> None:
        raise UserError(" and ".join(str(each) for each in given if isinstance(each, Path) and not each.is_absolute()))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(called, stop)
    assert main([*words, "--results", "mine", *more]) == 2
    assert capsys.readouterr().err.endswith(f": {work} and mine\n")
    assert {path.name for path in tmp_path.iterdir()} <= {work.partition("/")[0]}


def test_the_options_of_what_is_written_reach_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = list[object]()

    def noted(_: object, work: Path, out: Path, **options: object) -> Path:
        given.extend([work, out, options["unet_only"], options["export_every"]])
        return out

    monkeypatch.setattr("distillation.train.distil", noted)
    assert main(["run", "vega", "--work", str(tmp_path), "--out", "out", "--unet-only", "--export-every", "7", "--device", "cpu"]) == 0
    assert given == [tmp_path, Path("out"), True, 7]


def test_only_the_main_process_prints_the_students_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillation.train.distil", lambda *_, **__: tmp_path)
    for process, said in ((0, f"{tmp_path}\n"), (1, "")):
        monkeypatch.setattr("sdbench.training.processes.rank_and_local_size", lambda process=process: (process, 2))
        assert main(["run", "vega", "--out", "my out", "--unet-only"]) == 0
        printed = capsys.readouterr()
        assert printed.out == said
        assert printed.err.endswith("measure it: sdbench run --model 'my out' --base scenes-teacher\n") == bool(said)
