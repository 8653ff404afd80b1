"""The teacher's images: each depends only on its row, in any run, and a folder holds images of one set of settings."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from tiny import SIZE_PX

from distillation.cli import main
from distillation.data import draw
from distillation.data.draw import draw_images, read_caption_lines
from distillation.data.images import open_images
from distillation.export import check_new_or_empty
from sdbench.assets.prompts import read_lines
from sdbench.disk import read_json, read_json_lines, write_json
from sdbench.errors import UserError
from sdbench.generate import initial_noise
from sdbench.models.digest import weights_digest
from sdbench.models.resolve import resolve
from sdbench.settings import Sampling
from sdbench.store import Store
from sdbench.suites import Noise

pytestmark = pytest.mark.usefixtures("datasets_cache")
SAMPLING = Sampling(steps=2, guidance_scale=3.0, size_px=SIZE_PX, dtype="float32", batch=2)
SEED = 5
CAPTIONS = ["a red square", "eine Tür", "a red square", "last", "very last"]


def replaced(**settings: Any) -> Sampling:
    return Sampling(**{**SAMPLING.model_dump(), **settings})


def write_list(folder: Path) -> Path:
    (path := folder / "prompts.txt").write_text("\n\n".join(CAPTIONS) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_list(tmp_path)


@pytest.fixture(scope="module")
def whole(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run; tests must not change it."""
    folder = tmp_path_factory.mktemp("drawn")
    return draw_images(write_list(folder), teacher_folder, folder / "whole", SAMPLING, seed=SEED)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pixels(folder: Path) -> list[np.ndarray[Any, Any]]:
    images = open_images(str(folder))
    return [np.asarray(images.image(row)).astype(int) for row in range(len(images))]


@pytest.fixture
def puts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Identities of the images that are drawn."""
    put, drawn = Store.put, list[str]()

    def counted(store: Store, image: str, content: Any) -> None:
        drawn.append(image)
        put(store, image, content)

    monkeypatch.setattr(Store, "put", counted)
    return drawn


def test_images_equal_the_stock_pipelines_from_the_same_noise(whole: Path, teacher_folder: Path) -> None:
    assert open_images(str(whole)).captions == CAPTIONS
    pipeline = StableDiffusionXLPipeline.from_pretrained(teacher_folder)
    drawn = pixels(whole)
    for row, caption in enumerate(CAPTIONS):
        noise = initial_noise(Noise(seed=5), str(row), 0, (4, 4, 4))[None]
        with torch.no_grad():
            arguments = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": SIZE_PX, "width": SIZE_PX, "output_type": "np"}
            expected = 255 * pipeline(caption, latents=noise, **arguments).images[0]
        assert np.abs(drawn[row] - expected).max() < 1.5
    assert np.abs(drawn[0] - drawn[2]).max() > 10  # one caption, other noise


def test_parts_together_draw_the_same_as_one_run(
    whole: Path, prompts: Path, teacher_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "parts"
    for part, drawn in ((3, 1), (1, 3), (2, 5)):
        assert not (out / "metadata.jsonl").exists()
        draw_images(prompts, teacher_folder, out, SAMPLING, seed=SEED, part=(part, 3))
        assert (f"{out}: {drawn} of 5 images; the other parts draw the rest\n" in capsys.readouterr().err) == (drawn < 5)
    assert files(out) == files(whole)


def test_captions_are_read_as_the_prompts_of_a_run_are(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa cat\n\na dog\u2028on a mat\n".encode())
    assert read_caption_lines(path) == [*read_lines(path)] == ["a cat", "a dog\u2028on a mat"]


@pytest.mark.parametrize("part", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_an_invalid_part_is_an_error(part: str, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "make", str(prompts), "--out", str(tmp_path / "out"), "--part", part])
    assert f"{part!r} is not a part K/N" in capsys.readouterr().err


def test_a_killed_run_continues_to_the_same_bytes(
    whole: Path, prompts: Path, teacher_folder: Path, tmp_path: Path, puts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    order = [Path(row["file_name"]).stem for row in read_json_lines(whole / "metadata.jsonl")]
    out, counted = tmp_path / "out", Store.put

    def third_fails(store: Store, image: str, content: Any) -> None:
        if image == order[2]:
            raise KeyboardInterrupt
        counted(store, image, content)

    monkeypatch.setattr(Store, "put", third_fails)
    with pytest.raises(KeyboardInterrupt):
        draw_images(prompts, teacher_folder, out, SAMPLING, seed=SEED)
    assert {*puts} == {*order[:2], order[3]}, "the images of a batch are written side by side"
    with pytest.raises(UserError, match="nothing to read in"):
        open_images(str(out))
    monkeypatch.setattr(Store, "put", counted)
    draw_images(prompts, teacher_folder, out, SAMPLING, seed=SEED)
    assert sorted(puts) == sorted(order)
    assert files(out) == files(whole)
    assert len(files(out)) == len(CAPTIONS) + 3


def test_a_batch_that_does_not_fit_is_explained_and_a_smaller_one_may_follow(
    prompts: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhaust_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nMore of it")

    with monkeypatch.context() as patch:
        patch.setattr(UNet2DConditionModel, "forward", exhaust_memory)
        said = (
            r"too little memory on cpu to draw {} images at once \(CUDA out of memory. Tried to allocate 9 GiB\); {}use a device with more"
        )
        for batch, advice in ((2, "draw fewer with --batch, or "), (1, "")):
            with pytest.raises(UserError, match=said.format(batch, advice)):
                draw_images(prompts, teacher_folder, tmp_path / "out", replaced(batch=batch), seed=SEED)
        patch.setattr(draw, "load", exhaust_memory)
        with pytest.raises(UserError, match="too little memory on cpu to load the teacher"):
            draw_images(prompts, teacher_folder, tmp_path / "out", SAMPLING, seed=SEED)
    assert draw_images(prompts, teacher_folder, tmp_path / "out", SAMPLING, seed=SEED) == tmp_path / "out"


def test_damaged_settings_of_an_earlier_run_are_named(prompts: Path, teacher_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "made.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"made\.json is damaged .*; restore it, or move .*out away"):
        draw_images(prompts, teacher_folder, tmp_path / "out", SAMPLING, seed=SEED)


def test_only_new_captions_are_drawn(
    prompts: Path, teacher_folder: Path, tmp_path: Path, puts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = draw_images(prompts, teacher_folder, tmp_path / "out", SAMPLING, n=3, seed=SEED)
    assert open_images(str(out)).captions == CAPTIONS[:3]
    draw_images(prompts, teacher_folder, out, SAMPLING, seed=SEED)
    assert len(puts) == 5
    prompts.write_text("\n".join([*CAPTIONS[:4], "changed"]), encoding="utf-8")
    draw_images(prompts, teacher_folder, out, SAMPLING, seed=SEED)
    assert len(puts) == 6
    assert open_images(str(out)).captions == [*CAPTIONS[:4], "changed"]
    monkeypatch.delattr(draw, "load")  # nothing is to be loaded if nothing is to be drawn
    assert draw_images(prompts, teacher_folder, out, SAMPLING, seed=SEED) == out


def test_the_batch_size_changes_at_most_rounding(whole: Path, prompts: Path, teacher_folder: Path, tmp_path: Path) -> None:
    at_once = draw_images(prompts, teacher_folder, tmp_path / "out", replaced(batch=5), seed=SEED)
    for mine, theirs in zip(pixels(at_once), pixels(whole), strict=True):
        assert np.abs(mine - theirs).max() <= 1


def test_the_settings_are_recorded(whole: Path, teacher_folder: Path) -> None:
    made = read_json(whole / "made.json")
    assert made["teacher"] == weights_digest(resolve(str(teacher_folder)))
    assert made["sampling"] == {
        "steps": 2,
        "guidance_scale": 3.0,
        "size_px": SIZE_PX,
        "scheduler": "model",
        "negative_prompt": None,
        "dtype": "float32",
        "batch": 2,
    }
    assert (made["seed"], made["device"], made["n"]) == (5, "cpu", 5)
    assert made["captions"] == hashlib.sha256("\n".join(CAPTIONS).encode()).hexdigest()
    assert [versions["torch"].split("+")[0] for versions in made["versions"]] == [torch.__version__.split("+")[0]]


def test_the_recorded_teacher_is_that_of_the_weights_that_were_read(prompts: Path, teacher_folder: Path, tmp_path: Path) -> None:
    both = Path(shutil.copytree(teacher_folder, tmp_path / "both"))
    StableDiffusionXLPipeline.from_pretrained(teacher_folder).to(torch.float16).save_pretrained(both, variant="fp16")
    out = draw_images(prompts, both, tmp_path / "out", replaced(dtype="bfloat16"), n=1, seed=SEED)
    of_16_bit, of_32_bit = (weights_digest(resolve(str(both)), dtype=dtype) for dtype in ("bfloat16", "float32"))
    assert read_json(out / "made.json")["teacher"] == of_16_bit != of_32_bit


def test_versions_are_those_that_drew_the_images(
    prompts: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for torch_version, n in (("1", 2), ("2", 2), ("3", 3), ("1", 4)):
        monkeypatch.setattr(draw, "package_versions", lambda version=torch_version: {"torch": version})
        draw_images(prompts, teacher_folder, tmp_path / "out", SAMPLING, n=n, seed=SEED)
    assert read_json(tmp_path / "out" / "made.json")["versions"] == [{"torch": "1"}, {"torch": "3"}]


@pytest.mark.parametrize(
    ("sampling", "seed", "said"), [(SAMPLING, 6, r"seed 5 \(now 6\)"), (replaced(steps=3), SEED, r"steps 2 \(now 3\)")]
)
def test_a_folder_has_one_set_of_settings(
    whole: Path, prompts: Path, teacher_folder: Path, sampling: Sampling, seed: int, said: str
) -> None:
    before = files(whole)
    with pytest.raises(UserError, match=rf"whole holds images drawn with other settings: {said}\."):
        draw_images(prompts, teacher_folder, whole, sampling, n=1, seed=seed)
    assert files(whole) == before


def test_another_part_may_begin_while_the_folder_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin_another(out: Path) -> None:
        write_json(out / "made.json", {"seed": 5})
        check_new_or_empty(out)

    monkeypatch.setattr(draw, "check_new_or_empty", begin_another)
    draw._check_same_settings(tmp_path / "same", {"seed": 5})
    with pytest.raises(UserError, match=r"holds images drawn with other settings: seed 5 \(now 6\)"):
        draw._check_same_settings(tmp_path / "other", {"seed": 6})


def test_invalid_arguments_are_refused_before_anything_is_written(prompts: Path, teacher_folder: Path, tmp_path: Path) -> None:
    blank = tmp_path / "blank.txt"
    blank.write_text("\n \n", encoding="utf-8")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    arguments: dict[str, Any] = {"prompts": prompts, "teacher": teacher_folder, "out": tmp_path / "out", "sampling": SAMPLING}
    refused: list[tuple[dict[str, Any], str]] = [
        ({"n": 6}, r"prompts\.txt holds 5 captions; expected 6\. Add some, or lower --n"),
        ({"prompts": blank}, r"blank\.txt holds 0 captions; expected at least 1"),
        ({"prompts": tmp_path / "nowhere.txt"}, r"prompts .*nowhere\.txt cannot be read"),
        ({"teacher": tmp_path}, "no teacher in"),
        *([] if torch.cuda.is_available() else [({"device": "cuda"}, "no device 'cuda' here")]),
        ({"out": tmp_path / "taken"}, "taken exists; expected a new or empty folder"),
    ]
    for changed, said in refused:
        with pytest.raises(UserError, match=said):
            draw_images(**{**arguments, **changed})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--size-px", "12", "size_px: Input should be a multiple of 8"),
        ("--guidance-scale", "-1", "guidance_scale: Input should be greater"),
    ],
)
def test_invalid_settings_are_refused(
    option: str, value: str, said: str, prompts: Path, teacher_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "make", str(prompts), "--teacher", str(teacher_folder), "--out", str(tmp_path / "out"), option, value]
    assert main(words) == 2
    assert f"distillation: sampling: {said}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_line_makes_and_shows(prompts: Path, teacher_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ["--steps", "1", "--guidance-scale", "3", "--device", "cpu", "--dtype", "float32", "--n", "3"]
    assert main(["data", "make", str(prompts), "--teacher", str(teacher_folder), "--out", str(out), *options]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert read_json(out / "made.json")["sampling"]["guidance_scale"] == 3
    assert main(["data", "show", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "name: out",
        "images: 3",
        f"digest: {open_images(str(out)).digest}",
        "sizes: width 16..16 px, height 16..16 px, smaller side 16..16 px",
        "first captions:",
        *(f"  {caption}" for caption in CAPTIONS[:3]),
    ]
    for number, row in enumerate(read_json_lines(out / "metadata.jsonl")):
        (out / row["file_name"]).write_bytes(b"damaged")
        assert main(["data", "show", str(out)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[3] == ("sizes: none" if number == 2 else "sizes: width 16..16 px, height 16..16 px, smaller side 16..16 px")
        assert lines[4] == (
            f"cannot be decoded, by their headers, or without a caption: {number + 1}; run leaves out up to 1% of the images, or more with "
            "--max-undecodable"
        )
    assert main(["data", "show", str(tmp_path / "nothing")]) == 2
    assert "distillation: nothing to read at " in capsys.readouterr().err


def test_the_command_line_fetches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.csv").write_text("address,text\nhttp://127.0.0.1:9/a.png,a\n", encoding="utf-8")
    words = ["data", "fetch", str(tmp_path / "list.csv"), "--out", str(tmp_path / "out"), "--url-column", "address", "--min-px", "1"]
    assert main(words) == 2
    assert "none of 1 rows leads to an image; too small: 0, dead: 1 (no connection 1). " in capsys.readouterr().err
