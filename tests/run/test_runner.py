"""A suite over models: a record of each, no work that was done before, and nothing for what cannot be run."""

import errno
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes import (
    LATENCY,
    METRICS,
    PROBED,
    PROMPTS,
    SUITE,
    fail_if_called,
    letters,
    modification_times,
    prepare_in,
    replace_probes,
    replace_towers,
)
from filelock import FileLock
from PIL import Image
from processes import is_locked
from safetensors.torch import save_file
from tiny import edit_json, tiny_unet, with_unet

from sdbench import api, cli, machine, records
from sdbench.commands import measuring
from sdbench.disk import locked
from sdbench.encoders.catalogue import ENCODERS, TOWERS
from sdbench.errors import MissingError, PartialError, UserError
from sdbench.leaderboard import standings, writing
from sdbench.models.loading import load
from sdbench.models.resolve import resolve
from sdbench.models.spec import ModelSpec
from sdbench.probes import ceilings, driver, process
from sdbench.probes.driver import ProbeResult
from sdbench.records import Model
from sdbench.reference import cards
from sdbench.reference.build import build, images_in_folder
from sdbench.run import recording, runner
from sdbench.run.context import store_and_jobs
from sdbench.run.plan import plan
from sdbench.scenes import embedded
from sdbench.schedulers import sampling_notes
from sdbench.settings import Probes, Setting
from sdbench.store import Store
from sdbench.suites import Accept, Noise, Prompts

pytestmark = pytest.mark.usefixtures("fake_evaluators")


@pytest.mark.parametrize(
    ("error", "said"),
    [(MissingError("go online once"), "missing: go online once"), (ValueError("not finite"), "failed: ValueError: not finite")],
)
def test_nothing_is_recorded_where_no_metric_can_be_measured(
    error: Exception, said: str, teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> None:
        raise error

    replace_probes(monkeypatch, LATENCY)
    monkeypatch.setitem(TOWERS, "clip.scenes", absent)
    suite = PROBED.model_copy(update={"metrics": {"scenes": ("clip_score.scenes",)}})
    (earlier,) = runner.run([teacher], prepare_in(tmp_path, suite, "probes"))
    with pytest.raises(UserError, match=rf"none of the 1 metrics of 'scenes-teacher' .*clip_score\.scenes, is {said}\. `sdbench doctor`"):
        runner.run([teacher], prepare_in(tmp_path, suite))
    assert records.folders(tmp_path / "results") == [earlier], "what an earlier run measured makes no record of this one"
    assert len(list((tmp_path / "runs").rglob("images/*.png"))) == 4, "the images are kept"


def test_record_says_whether_the_range_that_its_suite_accepts_was_reproduced(teacher: ModelSpec, tmp_path: Path) -> None:
    accept = Accept(name="Ours", source="", prompts="p", noise="n", statistics="s", ranges={"clip_score.scenes": (-100, 100)})
    (folder,) = runner.run([teacher], prepare_in(tmp_path, SUITE.model_copy(update={"accept": accept})))
    assert (score := records.read_record(folder).value("clip_score.scenes"))
    assert score.note == "Ours-like: other prompts, latent, statistics; within -100.0..100.0"


def test_run_writes_one_record_per_model_and_a_second_run_nothing(
    teacher: ModelSpec, student: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [student, resolve("scenes-rendered"), teacher]
    folders = runner.run(specs, prepare_in(tmp_path))
    found = [records.read(path)[0] for path in folders]
    assert [record.model.name for record in found] == ["student", "scenes-rendered", "scenes-teacher"]
    assert [record.n_images for record in found] == [4, 4, 4]
    rates = [record.value("win_rate.preference.scenes") for record in found]
    assert [rate.state for rate in rates if rate] == ["ok", "ok", "not_applicable"]
    assert rates[0] is not None
    assert (rates[0].value, rates[0].note) == (0.5, "0 wins, 4 ties, 0 losses")  # its weights are the teacher's
    assert records.read(folders[0])[1].columns["win_rate.preference.scenes"].tolist() == [0.5] * 4
    assert found[0].model.weights_digest == found[2].model.weights_digest is not None
    assert {rate.reference for rate in rates[:2] if rate} == {found[2].model.weights_digest[:24]}, "the teacher they are compared with"
    assert found[1].model.weights_digest is None
    assert found[0].sampling["size_px"] == 64
    assert found[0].noise == {"kind": "per_image", "seed": 0}
    assert found[0].scheduler == {"class": "DDIMScheduler", "prediction_type": "v_prediction", "timesteps": [999]}
    assert found[1].scheduler == {}
    assert len(list((folders[0] / "images").glob("*.png"))) == 4

    before = modification_times(tmp_path)
    monkeypatch.setattr(runner, "load", fail_if_called)
    monkeypatch.setattr(Store, "put", fail_if_called)
    assert runner.run(specs, prepare_in(tmp_path)) == folders
    assert modification_times(tmp_path) == before


def test_records_of_the_others_are_written_where_one_cannot_be(teacher: ModelSpec, student: ModelSpec, tmp_path: Path) -> None:
    of_suite = tmp_path / "results" / "scenes" / SUITE.id.title
    of_suite.mkdir(parents=True)
    (of_suite / teacher.name).write_text("in the way", encoding="utf-8")
    with pytest.raises(UserError, match="cannot write the record of 'scenes-teacher'"):
        runner.run([teacher, student], prepare_in(tmp_path))
    assert [folder.parent.name for folder in records.folders(tmp_path / "results")] == ["student"]


def test_timesteps_of_ones_own_are_recorded_once(teacher: ModelSpec, tmp_path: Path) -> None:
    suite = SUITE.model_copy(update={"sampling": SUITE.sampling.model_copy(update={"scheduler": "euler", "timesteps": (500,)})})
    (folder,) = runner.run([teacher], prepare_in(tmp_path, suite))
    assert records.read_record(folder).sampling["timesteps"] == [500]
    assert runner.run([teacher], prepare_in(tmp_path, suite)) == [folder], "what is read back equals what was written"


def test_parts_draw_what_one_run_would_and_a_run_only_scores_them(
    teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def images_below(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.rglob("images/*.png") if "runs" in path.parts}

    suite = SUITE.model_copy(update={"prompts": Prompts(n=5)})  # batches of 2, 2 and 1
    monkeypatch.setattr(measuring, "_read_models_and_suite", lambda _: ([teacher], suite))
    command = ["run", "--model", "tiny", "--results", str(tmp_path / "parts" / "results"), "--runs", str(tmp_path / "parts" / "runs")]
    for part, missing, note in (("2/2", 3, "3 images are still missing"), ("1/2", 0, "all images are drawn")):
        assert cli.main([*command, "--json", "--part", part]) == 0
        output = capsys.readouterr()
        assert json.loads(output.out) == {"missing": {"scenes-teacher": missing}}
        assert f"scenes-teacher: {note}" in output.err
    assert not records.find(tmp_path / "parts" / "results", "scenes", suite.id, "scenes-teacher"), "parts write no record"

    (whole,) = runner.run([teacher], prepare_in(tmp_path / "whole", suite))
    assert images_below(tmp_path / "parts") == images_below(tmp_path / "whole")
    monkeypatch.setattr(runner, "load", fail_if_called)
    (scored,) = runner.run([teacher], prepare_in(tmp_path / "parts", suite))
    assert records.read_record(scored).values == records.read_record(whole).values


def test_images_drawn_in_batches_of_another_size_are_named_before_they_are_drawn_again(
    teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runner.draw([teacher], prepare_in(tmp_path), (1, 2))
    (first,) = (path.parent for path in (tmp_path / "runs").glob("*/images"))
    said = capsys.readouterr().err
    assert f"scenes-teacher: images are in {first}\n" in said
    assert "hold images" not in said
    runner.draw([teacher], prepare_in(tmp_path), (2, 2))
    assert "hold images" not in capsys.readouterr().err, "those of the other part are its own"
    monkeypatch.setattr(runner.ImageGenerator, "draw", lambda *_: pytest.fail(capsys.readouterr().err))
    singly = prepare_in(tmp_path, api.Overrides(batch=1).apply(SUITE))
    message = rf"scenes-teacher: {re.escape(str(first))} hold images that \S+ lacks, but were drawn with another version, batch size or"
    for work in (lambda: runner.run([teacher], singly), lambda: runner.draw([teacher], singly, (1, 2))):
        with pytest.raises(pytest.fail.Exception, match=message):
            work()


def test_file_trained_for_another_prediction_is_refused_before_any_work(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, file = Path(shutil.copytree(tiny_pipeline, tmp_path / "base")), tmp_path / "kohya.safetensors"
    edit_json(base / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    save_file(tiny_unet().state_dict(), file, metadata={"modelspec.prediction_type": "v"})
    spec = resolve(str(file), base=str(base))
    monkeypatch.setattr(runner, "load", fail_if_called)
    monkeypatch.setattr(ceilings, "measure", lambda *_: 1e12)
    message = (
        r"kohya\.safetensors states that it was trained with prediction_type v_prediction, but DDIMScheduler would draw it with "
        r"prediction_type epsilon; add --scheduler euler --prediction-type v_prediction, or set"
    )
    for work in (
        lambda: runner.run([spec], prepare_in(tmp_path)),
        lambda: runner.draw([spec], prepare_in(tmp_path), (1, 2)),
        lambda: plan([spec], prepare_in(tmp_path)),
    ):
        with pytest.raises(UserError, match=message):
            work()
    assert runner.fetch_models([spec], prepare_in(tmp_path, PROBED, "probes")) == [spec], "its speed does not depend on it"
    suite = api.Overrides(scheduler="euler", prediction_type="v_prediction").apply(SUITE)
    assert runner.fetch_models([spec], prepare_in(tmp_path, suite)) == [spec]


def test_notes_on_the_sampling_come_before_any_work(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ceilings, "measure", lambda *_: 1e12)
    spec = resolve(str(with_unet(tiny_pipeline, tmp_path / "lcm", tiny_unet(time_cond_proj_dim=8))))
    (note,) = sampling_notes(spec, SUITE.sampling)
    assert plan([spec], prepare_in(tmp_path))["text"].endswith(f"\n{note}")
    assert note not in plan([spec], prepare_in(tmp_path, PROBED, "probes"))["text"]
    runner.fetch_models([spec], prepare_in(tmp_path, PROBED, "probes"))
    assert capsys.readouterr().err == "", "its speed does not depend on it"
    runner.fetch_models([spec], prepare_in(tmp_path))
    assert capsys.readouterr().err == f"{note}\n"


def test_groups_of_prompts_are_in_the_record_and_in_the_leaderboard(teacher: ModelSpec, tmp_path: Path) -> None:
    suite = SUITE.model_copy(update={"prompts": Prompts(n=4, groups={"first": 3, "last": 1})})
    runner.run([teacher], prepare_in(tmp_path))
    (folder,) = runner.run([teacher], prepare_in(tmp_path, suite))
    assert records.read_record(folder).groups == {"first": 3, "last": 1}, "also where all else was measured before"
    assert "by group of prompts" in writing.markdown(standings.read_rows(tmp_path / "results"))


def test_of_two_equal_runs_at_once_the_second_finds_the_record_of_the_first(
    teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, others = records.write, []

    def write_second(*arguments: Any) -> Path:
        assert is_locked(tmp_path / "runs" / ".records.lock"), "another command that writes a record must wait"
        return write(*arguments)

    @contextmanager
    def after_the_other_run(path: Path) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(recording, "locked", locked)
            others.extend(runner.run([teacher], prepare_in(tmp_path)))
        with locked(path):
            yield

    monkeypatch.setattr(records, "write", write_second)
    monkeypatch.setattr(recording, "locked", after_the_other_run)
    assert runner.run([teacher], prepare_in(tmp_path)) == others
    assert len(records.folders(tmp_path / "results")) == 1


def test_changed_value_creates_a_new_record_beside_the_old_one(teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = runner.run([teacher], prepare_in(tmp_path))
    before = modification_times(first)
    replace_towers(monkeypatch, "clip.scenes", texts=lambda captions: letters(captions) ** 2)
    (second,) = runner.run([teacher], prepare_in(tmp_path))
    assert second != first
    assert second.parent == first.parent
    assert modification_times(first) == before


def test_all_cuda_devices_share_their_images(tmp_path: Path) -> None:
    model = Model(name="m", architecture="vega", source="folder:m", weights_digest="w")
    places = [store_and_jobs(model, replace(prepare_in(tmp_path), device=device))[0].folder for device in ("cuda", "cuda:1", "cpu")]
    assert places[0] == places[1] != places[2]


@pytest.mark.parametrize("changed", ["sdbench", "diffusers", "peft", "torch", "transformers", "batch"])
def test_images_of_other_versions_or_batches_are_not_taken_for_those_of_this_run(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(name="m", architecture="vega", source="folder:m", weights_digest="w")
    larger = SUITE.model_copy(update={"sampling": SUITE.sampling.model_copy(update={"batch": 4})})
    before = store_and_jobs(model, prepare_in(tmp_path))[0].folder
    assert store_and_jobs(model, prepare_in(tmp_path))[0].folder == before
    if changed == "sdbench":
        monkeypatch.setattr("sdbench.run.context.__version__", "99")
    monkeypatch.setattr("sdbench.run.context.version", lambda name: "99" if name == changed else machine.version(name))
    assert store_and_jobs(model, prepare_in(tmp_path, larger if changed == "batch" else SUITE))[0].folder != before


@pytest.mark.parametrize("edited", ["prompts", "latent"])
def test_prompts_and_latents_edited_while_images_are_drawn_are_refused(
    edited: str, teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, latent = tmp_path / "mine.txt", tmp_path / "mine.pt"
    prompts.write_text("\n".join(PROMPTS[:4]), encoding="utf-8")
    torch.save(torch.zeros(4, 16, 16), latent)
    suite = SUITE.model_copy(
        update={"prompts": Prompts(source="file", file=str(prompts), n=4), "noise": Noise(kind="fixed", file=str(latent))}
    )
    run_probes = runner.run_probes

    def edit(*arguments: Any) -> ProbeResult:
        if edited == "prompts":
            prompts.write_text("\n".join(PROMPTS[1:5]), encoding="utf-8")
        else:
            torch.save(torch.ones(4, 16, 16), latent)
        return run_probes(*arguments)

    monkeypatch.setattr(runner, "run_probes", edit)
    with pytest.raises(UserError, match="the prompts or the latent of suite 'own' changed since this run began"):
        runner.run([teacher], prepare_in(tmp_path, suite))
    assert not list(tmp_path.rglob("record.json"))


def test_noise_floor_has_the_distances_to_a_reference_of_ones_own(teacher: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for index, image in enumerate(cards._render_scenes(32)):
        Image.fromarray(image).save(tmp_path / "real" / f"{index}.png")
    places = api.Places(tmp_path / "results", tmp_path / "runs")
    build("mine", images_in_folder(tmp_path / "real"), ENCODERS["scenes.features"], places.work)
    _, floor = api.noise(teacher, SUITE.model_copy(update={"reference": "mine"}), seeds=2, places=places, device="cpu", only="quality")
    assert {"fd.scenes", "clip_score.scenes"} <= floor.metrics.keys()


def test_weights_replaced_while_other_models_are_drawn_are_refused(
    teacher: ModelSpec, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = Path(shutil.copytree(tiny_pipeline, tmp_path / "newest"))

    def load_then_train(spec: ModelSpec, **options: Any) -> Any:
        tiny_unet(seed=1).save_pretrained(newest / "unet")  # a trainer goes on, and writes its next checkpoint
        return load(spec, **options)

    monkeypatch.setattr(runner, "load", load_then_train)
    context = prepare_in(tmp_path)
    with pytest.raises(UserError, match=r"newest.* changed since this run began; run again"):
        runner.run([teacher, resolve(str(newest), name="newest")], context)
    (manifest,) = context.runs.glob("*/manifest.json")
    assert json.loads(manifest.read_text(encoding="utf-8"))["model"] == teacher.name, (
        "no image has the digest of weights that did not draw it"
    )


@pytest.mark.parametrize("only", [None, "probes"])
def test_times_of_weights_replaced_since_the_run_began_are_refused(
    only: str | None, teacher: ModelSpec, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = Path(shutil.copytree(tiny_pipeline, tmp_path / "newest"))

    def prune_and_measure(specs: list[ModelSpec], *_: Any, **__: Any) -> ProbeResult:
        tiny_unet(seed=1).save_pretrained(newest / "unet")
        return ProbeResult({spec.name: [LATENCY] for spec in specs}, "turns")

    monkeypatch.setattr(driver, "measure", prune_and_measure)
    with pytest.raises(PartialError, match=r"^newest: latency and memory: the files of 'newest' in .* changed since this run") as error:
        runner.run([teacher, resolve(str(newest), name="newest")], prepare_in(tmp_path, PROBED, only))
    found = {record.model.name: record for record in map(records.read_record, error.value.folders)}
    assert found[teacher.name].value(LATENCY.name) == LATENCY
    assert [*found] == [teacher.name, *([] if only else ["newest"])], "without images, nothing is left to record"
    assert only or {value.name for value in found["newest"].values} == {*METRICS}, "its images are those of its own weights"


@pytest.mark.parametrize("error", [None, OSError(errno.EIO, os.strerror(errno.EIO))])
def test_images_are_scored_where_latency_cannot_be_measured(
    error: OSError | None, teacher: ModelSpec, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer that keeps only its last checkpoints deletes one whose images were drawn, while the models are timed."""
    newest, measure = Path(shutil.copytree(tiny_pipeline, tmp_path / "newest")), driver.measure

    def delete_and_measure(*arguments: Any, **options: Any) -> ProbeResult:
        shutil.rmtree(newest)
        if error:
            raise error
        return measure(*arguments, **options)

    replace_probes(monkeypatch, LATENCY)
    runner.run([teacher], prepare_in(tmp_path, PROBED, "probes"))
    monkeypatch.setattr(driver, "measure", delete_and_measure)
    said = r"Input/output error" if error else r"newest does not exist: it was moved or deleted since it was named"
    with pytest.raises(PartialError, match=rf"^scenes-teacher and newest: latency and memory: .*{said}$") as raised:
        runner.run([teacher, resolve(str(newest), name="newest")], prepare_in(tmp_path, PROBED, None))
    found = [records.read_record(folder) for folder in raised.value.folders]
    assert [{value.name for value in record.values} for record in found] == [{*METRICS, LATENCY.name}, {*METRICS}]
    assert found[0].run == "turns", "what an earlier run measured is kept"


def test_a_model_deleted_after_it_was_drawn_costs_only_itself_its_latency(
    teacher: ModelSpec, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest, probe = Path(shutil.copytree(tiny_pipeline, tmp_path / "newest")), runner.run_probes

    def probe_and_check(specs: Any, context: Any) -> ProbeResult:
        assert [spec.name for spec in specs] == [teacher.name]
        return probe(specs, context)

    def draw_and_delete(spec: ModelSpec, *arguments: Any) -> Any:
        drawn = draw_images(spec, *arguments)
        if spec.name == "newest":
            shutil.rmtree(newest)
        return drawn

    draw_images = runner._draw_images
    monkeypatch.setattr(runner, "_draw_images", draw_and_delete)
    monkeypatch.setattr(runner, "run_probes", probe_and_check)
    replace_probes(monkeypatch, LATENCY)
    specs = [teacher, resolve("scenes-rendered"), resolve(str(newest), name="newest")]
    with pytest.raises(PartialError, match=r"^newest: latency and memory: .*newest does not exist") as raised:
        runner.run(specs, prepare_in(tmp_path, PROBED, None))
    found = {record.model.name: {value.name for value in record.values} for record in map(records.read_record, raised.value.folders)}
    assert found[teacher.name] == {*METRICS, LATENCY.name}
    assert {*found} == {teacher.name, "scenes-rendered", "newest"}


def test_a_gpu_that_fails_while_images_are_drawn_is_said(teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(runner, "generate", fail)
    with pytest.raises(PartialError, match=r"the GPU failed while images were drawn \(AcceleratorError: CUDA error: an illegal"):
        runner.run([teacher], prepare_in(tmp_path))


def test_weights_overwritten_while_their_own_model_is_drawn_change_no_image(
    teacher: ModelSpec, tiny_pipeline: Path, tmp_path: Path
) -> None:
    folder, contexts = Path(shutil.copytree(tiny_pipeline, tmp_path / "own")), (prepare_in(tmp_path), prepare_in(tmp_path / "unbroken"))
    spec = replace(resolve(str(folder)), name=teacher.name)
    generators = [runner.ImageGenerator(spec, runner.describe_model(spec, context), context) for context in contexts]
    ids = [job.image_id for job in generators[0].jobs]
    generators[1].draw(generators[1].jobs)
    generators[0].draw(generators[0].jobs[:2])
    with next((folder / "unet").glob("*.safetensors")).open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(size // 2)
        file.write(bytes(size - size // 2))
    generators[0].draw(generators[0].jobs)
    drawn, expected = (generator.store.read(ids) for generator in generators)
    assert (drawn == expected).all()


def test_only_the_copy_of_the_samplings_dtype_is_fetched_whatever_is_timed(
    teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(runner, "fetch", lambda _, *, dtype: fetched.append(dtype))
    suite = SUITE.model_copy(update={"probes": Probes(rounds=1, calls=2, warmup=0, settings=(Setting(dtype="bfloat16"),))})
    runner.fetch_models([teacher], prepare_in(tmp_path, suite, None))
    assert fetched == ["float32"]


def test_changed_weights_of_the_package_are_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "file_digest", lambda _: "of other bytes")
    monkeypatch.setattr(runner, "weights_digest", fail_if_called)
    with pytest.raises(UserError, match=r"embedded weights .* are missing or changed; reinstall sdbench"):
        runner.run([resolve("scenes-vega")], prepare_in(tmp_path))


def test_model_that_cannot_be_drawn_does_not_stop_the_others(
    teacher: ModelSpec, student: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load_in_small_memory(spec: ModelSpec, **options: Any) -> Any:
        pipeline = load(spec, **options)
        if spec.name == "large":
            pipeline.unet.forward = exhaust_memory
        return pipeline

    def exhaust_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nIf reserved but unallocated memory is large")

    monkeypatch.setattr(runner, "load", load_in_small_memory)
    monkeypatch.setattr(machine, "is_slow", lambda dtype, _: dtype == "float32")
    specs, context = [teacher, replace(student, name="large"), student], prepare_in(tmp_path)
    said = (
        r"^large: too little memory on cpu to draw \d images at once \(CUDA out of memory. Tried to allocate 9 GiB\); "
        r"draw fewer with --batch"
    )
    with pytest.raises(PartialError, match=said):
        runner.draw(specs, context, (1, 1))
    with pytest.raises(PartialError, match=said) as error:
        runner.run(specs, context)
    assert [folder.parent.name for folder in error.value.folders] == [teacher.name, student.name]
    assert "no fast convolutions in float32" in capsys.readouterr().err


def test_model_whose_files_vanish_while_they_are_read_does_not_stop_the_others(
    teacher: ModelSpec, student: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_only_the_student(spec: ModelSpec, **options: Any) -> Any:
        if spec.name == teacher.name:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "unet")
        return load(spec, **options)

    monkeypatch.setattr(runner, "load", load_only_the_student)
    with pytest.raises(PartialError, match=r"^scenes-teacher: \[Errno 2\] No such file or directory: 'unet'") as error:
        runner.run([teacher, student], prepare_in(tmp_path))
    assert [folder.parent.name for folder in error.value.folders] == [student.name]


def test_records_without_their_teacher_are_written_and_the_error_says_so(
    teacher: ModelSpec, student: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_all_but_the_teacher(spec: ModelSpec, **options: Any) -> Any:
        if spec.name == teacher.name:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return load(spec, **options)

    monkeypatch.setattr(runner, "load", load_all_but_the_teacher)
    with pytest.raises(PartialError) as error:
        runner.run([teacher, student], prepare_in(tmp_path))
    assert str(error.value) == (
        f"{teacher.name}: too little memory on cpu to load the model (DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 "
        "bytes); use a device with more (so the records of the others may lack what compares them with it)"
    )
    assert [folder.parent.name for folder in error.value.folders] == [student.name]


def test_damaged_record_stops_the_run_before_any_work(
    teacher: ModelSpec, student: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder,) = runner.run([teacher], prepare_in(tmp_path))
    (folder / "scores.parquet").write_bytes(b"half of it")
    before = modification_times(tmp_path)
    for work in ("load", "weights_digest", "fetch", "generate"):
        monkeypatch.setattr(runner, work, fail_if_called)
    with pytest.raises(UserError, match=rf"record .*{folder.name} was changed.*Restore it, or delete the folder"):
        api.run([student], SUITE, places=api.Places(tmp_path / "results", tmp_path / "runs"), device="cpu", only="quality")
    assert modification_times(tmp_path) == before


def test_probes_alone_generate_no_images_and_skip_rendered_models(
    teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_models, profiled = list[list[str]](), list[bool]()

    def fake_measure(specs: list[ModelSpec], *_: Any, profile: bool, **__: Any) -> ProbeResult:
        measured_models.append([spec.name for spec in specs])
        profiled.append(profile)
        return ProbeResult({spec.name: [LATENCY] for spec in specs}, f"turns {len(measured_models)}")

    monkeypatch.setattr(driver, "measure", fake_measure)
    monkeypatch.setattr(runner, "load", fail_if_called)
    folders = runner.run([resolve("scenes-rendered"), teacher], prepare_in(tmp_path, PROBED, "probes"))
    found = [records.read(path)[0] for path in folders]
    assert measured_models == [["scenes-teacher"]]
    assert [record.values for record in found] == [(), (LATENCY,)]
    assert [record.n_images for record in found] == [0, 0]
    assert runner.run([resolve("scenes-rendered"), teacher], prepare_in(tmp_path, PROBED, "probes")) == folders, "the same values again"
    runner.run_probes([teacher], replace(prepare_in(tmp_path, PROBED, "probes"), profile=True))
    assert profiled == [False, False, True]


def test_benchmark_file_of_the_working_folder_is_not_run(teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of another version would give other numbers under the same names."""
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "bench_pipeline.py").touch()
    monkeypatch.chdir(tmp_path)
    folders = list[str]()

    def note_folders(command: list[str], *, env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        folders.extend(env["PYTHONPATH"].split(os.pathsep))
        return subprocess.CompletedProcess(command, 1, "", "")

    monkeypatch.setattr(process, "subprocess", SimpleNamespace(**{**vars(subprocess), "run": note_folders}))
    runner.run_probes([teacher], prepare_in(tmp_path, PROBED, "probes"))
    found = [file for folder in folders if (file := Path(folder, "bench_pipeline.py")).exists()]
    assert found[0] == Path(__file__).parents[2] / "suites" / "bench_pipeline.py"


def test_model_of_another_family_is_rejected_before_any_work(teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = prepare_in(tmp_path)
    monkeypatch.setattr(runner, "weights_digest", fail_if_called)
    with pytest.raises(UserError, match="'other' is of family 'sdxl', suite 'own' is for 'scenes'"):
        runner.run([teacher, replace(teacher, name="other", family="sdxl")], context)
    assert modification_times(tmp_path) == {}


def test_unknown_metric_in_a_suite_is_rejected_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown metric 'fd\.scene'; did you mean 'fd\.scenes'"):
        prepare_in(tmp_path, SUITE.model_copy(update={"metrics": {"scenes": ("fd.scene",)}}))


@pytest.mark.parametrize("size", [{"size_px": 128}, {"height_px": 128}])
def test_scenes_of_another_size_are_refused_before_any_work(size: dict[str, int], tmp_path: Path) -> None:
    """The family's evaluators take one size alone; latency and memory can be measured at any."""
    suite = PROBED.model_copy(update={"sampling": PROBED.sampling.model_copy(update=size)})
    with pytest.raises(UserError, match=r"suite 'own' draws images of (128 x 128|64 x 128) px, .* take 64 x 64; set size_px to 64"):
        prepare_in(tmp_path, suite)
    assert list(tmp_path.iterdir()) == []
    assert prepare_in(tmp_path, suite, "probes").sampling.shape_px != (64, 64)


def test_file_system_without_locks_is_rejected_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(UserError, match=r"cannot lock .*\.records\.lock: .*No locks available.* Make its folder writable, or name another"):
        prepare_in(tmp_path)


@pytest.mark.parametrize("blocked", ["results", "runs"])
def test_unwritable_folder_is_rejected_before_any_work(blocked: str, tmp_path: Path) -> None:
    (tmp_path / blocked).write_text("a file in the way", encoding="utf-8")
    with pytest.raises(UserError, match=rf"folder .*{blocked} cannot be written \(File exists\).*--results and --runs"):
        prepare_in(tmp_path)
    assert modification_times(tmp_path).keys() == {blocked}
