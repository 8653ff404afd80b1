"""Images made elsewhere: paired with their prompts, scored like a model's own, and refused where the pairs are in doubt."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from clips import tiny
from fakes import IMAGES, METRICS, PROMPTS, colours
from PIL import Image
from subjects import make_subject
from synthetic_images import photographs

from sdbench import api, cli, records, suites
from sdbench.arrays import F32, U8
from sdbench.encoders import clip, scenes
from sdbench.encoders.catalogue import TOWERS
from sdbench.encoders.inference import device
from sdbench.errors import UserError
from sdbench.leaderboard import standings, writing
from sdbench.metrics.cosine import caption_score
from sdbench.records import Model, Scores, Value
from sdbench.run import external
from sdbench.scenes.grammar import parse
from sdbench.scenes.render import render
from sdbench.score import score
from sdbench.store import Store

pytestmark = pytest.mark.usefixtures("fake_evaluators")

OWN = """
name = "own"
version = 1
family = "scenes"
description = "for tests"
metrics.scenes = ["scene_accuracy", "preference.scenes", "win_rate.preference.scenes", "agreement.ssim"]
prompts = { n = 6 }
sampling = { steps = 1, guidance_scale = 1, size_px = 64, dtype = "float32", batch = 6 }
"""
OWN_POLICY = """
alpha = 0.05
[suites.own]
"preference.scenes" = { direction = "higher", margin = 1, required = true }
"latency.pipeline.p50" = { direction = "lower", margin = 0.05, required = true }
"""


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of captions are read through `datasets`, which would keep them in the home folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def save_images(folder: Path, images: U8, prompts: list[str]) -> tuple[Path, Path]:
    store = Store(folder / "work", {})
    for index, image in enumerate(images):
        store.put(f"{index:03d}", image)
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    return store.folder / "images", folder / "prompts.txt"


def test_external_images_score_like_generated_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])  # for the suite's list of metrics
    values, scores = api.score(*save_images(tmp_path, IMAGES, PROMPTS), "quality", places=api.Places(tmp_path))
    assert list((tmp_path / "runs").glob("*/images/*.png")), "beside the results by default"
    own, columns = score(
        make_subject(tmp_path, IMAGES, PROMPTS, reference="scenes"), [name for name in METRICS if not name.startswith("win_rate")]
    )
    assert values == own
    for name, column in columns.columns.items():
        np.testing.assert_array_equal(scores.columns[name], column)


@pytest.mark.parametrize("more", [[], ["--name", "dall-e"]])
def test_external_images_are_scored_on_the_requested_device(more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def recorded(images: U8) -> F32:
        seen.append(device())
        return colours(images)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(scenes, "features", recorded)
    images, prompts = map(str, save_images(tmp_path, IMAGES, PROMPTS))
    args = ["score", "--images", images, "--prompts", prompts, "--suite", "quality", "--results", str(tmp_path / "results"), *more]
    assert cli.main([*args, "--device", "gpu"]) == 2
    assert cli.main([*args, "--device", "cpu"]) == 0
    assert set(seen) == {torch.device("cpu")}


def test_external_images_get_a_row_and_a_verdict(tmp_path: Path) -> None:
    places, own, policy = api.Places(tmp_path), tmp_path / "own.toml", tmp_path / "policy.toml"
    own.write_text(OWN, encoding="utf-8")
    policy.write_text(OWN_POLICY, encoding="utf-8")
    suite = suites.load(str(own))
    prompts = [*suite.prompt_list().values()]
    images = render([parse(prompt) for prompt in prompts], range(6))
    folder = api.record_images(*save_images(tmp_path, images, prompts), str(own), name="dall-e", places=places)
    record, scores = records.read(folder)
    assert (record.suite, list(scores.prompt_ids)) == (suite.id, [*suite.prompt_list()])  # beside the models' rows
    assert record.model == Model(name="dall-e", architecture="", source="images:images, 64 x 64 px, PNG", weights_digest=None)
    found = {value.name: value for value in record.values}
    assert (record.sampling, record.noise, found["scene_accuracy"].value) == ({}, {}, 1)
    assert [found[name].state for name in ("win_rate.preference.scenes", "agreement.ssim")] == [
        "missing",
        "not_applicable",
    ]  # no teacher yet
    (row,) = standings.read_rows(tmp_path)
    assert (row.name, row.is_images_only) == ("dall-e", True)
    assert "sampling: unknown, made elsewhere (images:images, 64 x 64 px, PNG)" in writing.markdown([row])
    report = api.gate(str(folder), str(folder), policy=policy, places=places)
    assert (report.verdict, [result.name for result in report.results]) == ("pass", ["preference.scenes"])
    assert report.notes == (
        (
            "the images of dall-e (images:images, 64 x 64 px, PNG) and dall-e (images:images, 64 x 64 px, PNG) were made elsewhere; "
            "how they were sampled is not known"
        ),
        "not measured, so not weighed: latency.pipeline.p50",
        "candidate and baseline are the same record",
    )
    files, listed = save_images(tmp_path / "other", images, prompts[1:] + prompts[:1])
    Image.fromarray(images[0]).save(files / "000.JPG")
    (files / "000.png").unlink()
    other = records.read_record(api.record_images(files, listed, str(own), name="dall-e", places=places))
    assert (other.suite.name, other.model.source) == ("own-custom", "images:images, 64 x 64 px, JPEG and PNG")
    with pytest.raises(UserError, match="not the name of a model in the catalogue; choose another with --name"):
        api.record_images(*save_images(tmp_path / "named", images, prompts), str(own), name="sdxl", places=places)


@pytest.mark.parametrize("layout", ["metadata.jsonl", "text files"])
def test_captions_in_the_folder_pair_images_with_the_prompts_of_the_suite_in_any_order(tmp_path: Path, layout: str) -> None:
    own, folder, places = tmp_path / "own.toml", tmp_path / "images", api.Places(tmp_path)
    own.write_text(OWN, encoding="utf-8")
    suite = suites.load(str(own))
    prompts = [*suite.prompt_list().values()]
    folder.mkdir()
    for index, prompt in enumerate(prompts):
        name = f"image {9 - index}"  # the reverse of the prompts' order
        Image.fromarray(render([parse(prompt)], [index])[0]).save(folder / f"{name}.png")
        if layout == "text files":
            (folder / f"{name}.txt").write_text(prompt, encoding="utf-8")
        else:
            with (folder / layout).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"file_name": f"{name}.png", "text": f"{prompt} "}) + "\n")
    record, scores = records.read(api.record_images(folder, None, str(own), name="dall-e", places=places))
    assert (record.suite, list(scores.prompts or ())) == (suite.id, prompts)
    assert scores.columns["scene_accuracy"].tolist() == [1] * 6, "each image shows its own caption"
    few = "prompts = { n = 5 }"
    own.write_text(OWN.replace("prompts = { n = 6 }", few), encoding="utf-8")
    other, scores = records.read(api.record_images(folder, None, str(own), name="dall-e", places=places))
    assert (other.suite.name, other.n_images, scores.columns["scene_accuracy"].tolist()) == ("own-custom", 6, [1] * 6)
    assert other.prompts.startswith(f"6 of {folder}, ")
    Image.fromarray(IMAGES[0]).save(folder / "more.png")
    with pytest.raises(UserError, match=r"1 images have no caption, such as more\.png; write theirs, remove them, or name"):
        api.score(folder, None, str(own), places=places)


def test_captions_without_image_files_are_refused(tmp_path: Path) -> None:
    images, _ = save_images(tmp_path, IMAGES[:1], PROMPTS[:1])
    packed = {"image": [{"bytes": (images / "000.png").read_bytes(), "path": None}], "text": PROMPTS[:1]}
    (tmp_path / "packed").mkdir()
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(packed, features).to_parquet(tmp_path / "packed" / "0.parquet")
    with pytest.raises(UserError, match=r"packed: captions without an image file, .*; remove them, or unpack the images"):
        api.score(tmp_path / "packed", None, places=api.Places(tmp_path))


def test_images_without_captions_need_a_file_of_prompts(tmp_path: Path) -> None:
    images, _ = save_images(tmp_path, IMAGES, PROMPTS)
    with pytest.raises(UserError, match=r"a \.txt beside each image.* Or name a text file of prompts with --prompts"):
        api.score(images, None, places=api.Places(tmp_path))
    (images / "000.txt").write_text(PROMPTS[0], encoding="utf-8")
    with pytest.raises(UserError, match=r"images have no caption, such as 001\.png; .* or name a text file of prompts with --prompts"):
        api.score(images, None, places=api.Places(tmp_path))


def test_python_functions_take_paths_as_strings(tmp_path: Path) -> None:
    images, prompts, own, policy = (
        *map(str, save_images(tmp_path, IMAGES, PROMPTS)),
        str(tmp_path / "own.toml"),
        str(tmp_path / "policy.toml"),
    )
    Path(own).write_text(OWN, encoding="utf-8")
    Path(policy).write_text(OWN_POLICY, encoding="utf-8")
    places = api.Places(tmp_path / "results")
    values, _ = api.score(images, prompts, own, places=places)
    folder = api.record_images(images, prompts, own, name="dall-e", places=places)
    assert [value.name for value in values] == ["scene_accuracy", "preference.scenes"]
    assert api.gate(folder, folder, policy=policy, places=places).verdict == "pass"
    assert [path.name for path in api.report(places=places, out=str(tmp_path / "page.html"), policy=policy)] == ["page.html"]


def test_source_of_images_has_their_width_first(tmp_path: Path) -> None:
    suite = suites.load("standard")
    found = external.find_images(*save_images(tmp_path, photographs(2, 40, 56), ["a photograph"] * 2), suite)
    assert external._describe_source(found, external.load_images(found, suite, tmp_path / "runs")) == "images, 56 x 40 px, PNG"


def test_images_of_equal_bytes_in_other_shapes_are_stored_apart(tmp_path: Path) -> None:
    shapes = [(4, 4, 3), (2, 8, 3)]
    stored = [external.store_images([np.zeros(shape, np.uint8)], ["a night"], tmp_path) for shape in shapes]
    assert [each.store.read(each.image_ids)[0].shape for each in stored] == shapes


def test_image_and_prompt_counts_must_match(tmp_path: Path) -> None:
    images, prompts = save_images(tmp_path, IMAGES, PROMPTS[:5])
    with pytest.raises(UserError, match=r"6 images and .* 5 prompts"):
        api.score(images, prompts, places=api.Places(tmp_path))


def test_images_with_ambiguous_file_order_are_rejected(tmp_path: Path) -> None:
    images, prompts = save_images(tmp_path, IMAGES, PROMPTS)
    (images / "005.png").rename(images / "10.png")
    suite = suites.load("quality")
    assert len(external.load_images(external.find_images(images, prompts, suite), suite, tmp_path / "runs").image_ids) == len(IMAGES)
    (images / "004.png").rename(images / "2.png")
    with pytest.raises(UserError, match=r"003\.png comes before 2\.png as text and after it by number.*as in 00002\.png"):
        external.find_images(images, prompts, suite)


def test_full_size_images_are_scored_with_the_available_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDBENCH_WEIGHTS", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    towers, images = clip.towers(tiny(), "tiny"), photographs(70, 40, 56)
    monkeypatch.setitem(TOWERS, "clip.vit-l-14", lambda: towers)
    prompts = [f"a photograph, number {row}" for row in range(70)]
    values, scores = api.score(*save_images(tmp_path, images, prompts), places=api.Places(tmp_path))
    assert {value.name for value in values if value.state != "missing"} == {"clip_score.vit-l-14"}
    assert {"fid.clean", "pickscore.v1"} < {value.name for value in values}
    expected = caption_score(towers.images(images), towers.texts(prompts))
    np.testing.assert_allclose(scores.columns["clip_score.vit-l-14"], expected, atol=1e-4)


def test_scores_are_printed_with_their_notes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    distance = Value(name="fd.scenes", kind="set", direction="lower", unit="distance", value=3.0, n=4, note="few images")
    score = Value(name="scene_accuracy", kind="score", direction="higher", unit="share", value=0.5, n=4)
    monkeypatch.setattr(api, "score", lambda *_, **__: ([distance, score], Scores([], [], {})))
    assert cli.main(["score", "--images", "images", "--suite", "quality"]) == 0
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "fd.scenes 3.000 (few images), n = 4",
        "scene_accuracy 0.5000, n = 4",
    ]


def test_metrics_that_lack_the_same_thing_share_a_line_and_no_score_at_all_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SDBENCH_WEIGHTS", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    images, prompts = map(str, save_images(tmp_path, photographs(7, 40, 56), ["a photograph"] * 7))
    arguments = ["score", "--images", images, "--prompts", prompts, "--results", str(tmp_path)]
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    lines = said.out.splitlines()
    of_inception = (
        "fid.clean, kid, prdc.precision, prdc.recall, prdc.density, prdc.coverage: missing: reference: 'coco-30k' has not been built"
    )
    assert sum(line.startswith(of_inception) for line in lines) == 1
    assert sum("has not been built for encoder 'inception.clean'" in line for line in lines) == 1
    assert "none of these metrics could be measured" in said.err
    assert cli.main([*arguments, "--json"]) == 2
    assert capsys.readouterr().out == ""


def test_images_of_mixed_sizes_are_rejected_in_any_block(tmp_path: Path) -> None:
    images, prompts = save_images(tmp_path, photographs(66, 40, 56), ["a photograph"] * 66)
    Image.fromarray(photographs(1, 40, 40)[0]).save(images / "064.png")
    Image.fromarray(photographs(1, 40, 40)[0]).save(images / "065.png")
    with pytest.raises(UserError, match=r"064\.png is 40 x 40 px, the first is 56 x 40"):
        api.score(images, prompts, places=api.Places(tmp_path))


def test_images_and_prompts_that_are_not_scenes_are_rejected(tmp_path: Path) -> None:
    """The scenes evaluators would fail on such images and give meaningless scores for such prompts."""
    wide = np.concatenate([IMAGES, IMAGES], axis=2)
    with pytest.raises(UserError, match=r"images of 128 x 64 px; scenes are of 64 x 64.*--suite standard"):
        api.score(*save_images(tmp_path / "wide", wide, PROMPTS), "quality", places=api.Places(tmp_path))
    with pytest.raises(UserError, match=r"prompts\.txt: not a caption of the scenes grammar: 'a photo of a cat'"):
        api.score(
            *save_images(tmp_path / "cat", IMAGES, [*PROMPTS[:-1], "a photo of a cat"]),
            "quality",
            places=api.Places(tmp_path),
        )
    with pytest.raises(UserError, match=r"suite 'fid' is a part"):
        api.score(*save_images(tmp_path / "part", IMAGES, PROMPTS), "fid", places=api.Places(tmp_path))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("path", ["nowhere", "prompts.txt"])
def test_images_path_that_is_not_a_folder_is_an_error(path: str, tmp_path: Path) -> None:
    _, prompts = save_images(tmp_path, IMAGES, PROMPTS)
    for given in (prompts, None):
        with pytest.raises(UserError, match=rf"^there is no folder {tmp_path / path}; name the folder of the images with --images$"):
            api.score(tmp_path / path, given, places=api.Places(tmp_path))


def test_metrics_that_cannot_be_measured_are_errors_before_any_work(tmp_path: Path) -> None:
    images, prompts = save_images(tmp_path, IMAGES, PROMPTS)
    for metric, said in (
        ("clip_scor.scenes", r"^unknown metric 'clip_scor\.scenes'; did you mean 'clip_score\.scenes'\?"),
        ("agreement.ssim", r"^suite 'quality-custom' has no metric that scores images without their teacher's; name some with --metrics"),
    ):
        suite = api.Overrides(metrics=[metric]).apply(suites.load("quality"))
        with pytest.raises(UserError, match=said):
            api.score(images, prompts, suite, places=api.Places(tmp_path))
    assert not (tmp_path / "runs").exists()


def test_folder_without_images_and_missing_prompts_are_errors(tmp_path: Path) -> None:
    images, prompts = save_images(tmp_path, IMAGES[:0], PROMPTS)
    images.mkdir(parents=True)
    for missing in (tmp_path, tmp_path / "nowhere.txt"):
        with pytest.raises(UserError, match=f"^there is no file {missing}; name a text file with one prompt per line with --prompts$"):
            api.score(images, missing, places=api.Places(tmp_path))
    with pytest.raises(UserError, match=rf"{images} holds no images \(\.jpeg, \.jpg, \.png, \.webp\)$"):
        api.score(images, prompts, places=api.Places(tmp_path))
