"""Measure: models under a suite, and images made elsewhere."""

from collections.abc import Sequence
from pathlib import Path

from sdbench import machine
from sdbench.api.inputs import NamedModel, NamedSuite, find_models, find_suite, load_suite
from sdbench.api.overrides import Overrides
from sdbench.api.places import NamedPlaces, as_places
from sdbench.errors import UserError
from sdbench.records import Scores, Value


def run(
    models: NamedModel | Sequence[NamedModel],
    suite: NamedSuite | None = None,
    *,
    places: NamedPlaces = "results",
    device: str | None = None,
    only: str | None = None,
    settings: Sequence[str] = (),
    profile: bool = False,
) -> list[Path]:
    """Measure models under a suite, and return their record folders.

    Args:
        models: one or several, each what `sdbench run --model` takes or a `ModelSpec`.
        suite: a name, the path of a suite file, or a suite; by default that of the first model's family.
        only: "quality" or "probes" for one half of the suite.
        settings: labels of the probes' settings to measure; all by default.
        profile: also write a table of where each stage spends its time.

    Raises:
        UserError: bad input, as from the command line.
    """
    specs, places = find_models(models), as_places(places)  # raises before torch is imported, for seconds
    from sdbench.run import runner
    from sdbench.run.context import RunContext, prepare

    chosen, device = find_suite(suite, specs[0]), machine.choose_device(device)
    context = RunContext(chosen, device, places.results, places.work, only, settings=tuple(settings), profile=profile)
    prepare(context)
    return runner.run(specs, context)


def draw(
    models: NamedModel | Sequence[NamedModel],
    suite: NamedSuite | None = None,
    *,
    part: tuple[int, int],
    places: NamedPlaces = "results",
    device: str | None = None,
) -> dict[str, int]:
    """Draw a part of the images that `run` would draw, for several processes that share `places.work`, such as one per GPU.

    When all parts are there, `run` only scores them and writes the records.

    Args:
        models, suite: see `run`.
        part: (k, n), the k-th of n parts, k from 1 to n.

    Returns:
        The number of images that are still missing, by name of the model.

    Raises:
        UserError: bad input, as from the command line.
    """
    if not 1 <= part[0] <= part[1]:
        raise UserError(f"there is no part {part[0]} of {part[1]}; parts are (k, n) with k from 1 to n, such as (2, 8)")
    specs, places = find_models(models), as_places(places)  # raises before torch is imported, for seconds
    from sdbench.run import runner
    from sdbench.run.context import RunContext, prepare

    chosen = find_suite(suite, specs[0])
    context = RunContext(chosen, machine.choose_device(device), places.results, places.work, only="quality")
    prepare(context)
    return runner.draw(specs, context, part)


def score(
    images: str | Path,
    prompts: str | Path | None = None,
    suite: NamedSuite = "standard",
    *,
    places: NamedPlaces = "results",
    device: str | None = None,
) -> tuple[list[Value], Scores]:
    """Score images made elsewhere by a suite's metrics, except those that compare with the teacher.

    Args:
        images: folder of PNG, JPEG or WebP images of one size.
        prompts: text file with one prompt per line, in the order of the sorted file names; by default the captions in the folder, in its
            `metadata.jsonl` or `metadata.csv`, or in a text file beside each image.
        suite: a name, the path of a suite file, or a suite. Its family decides what is accepted: `scenes` takes 64 x 64 px and the
            grammar's captions.

    Raises:
        UserError: the numbers of images and prompts differ, a file cannot be read, the order of the file names is ambiguous, the family
            accepts no such images, no metric of the suite can score them, or there is no such suite, metric or device.
    """
    _check_paths(images, prompts)
    from sdbench.encoders.inference import evaluators_on
    from sdbench.run import external
    from sdbench.score import find_protocols
    from sdbench.score import score as score_subject

    chosen = load_suite(suite)
    metrics = [protocol.name for protocol in find_protocols(chosen.own_metrics) if not protocol.against_teacher]
    found = external.find_images(Path(images), Path(prompts) if prompts else None, chosen)
    if not metrics:
        raise UserError(
            f"suite {chosen.name!r} has no metric that scores images without their teacher's; name some with --metrics, or another suite"
        )
    with evaluators_on(machine.choose_device(device)):
        return score_subject(external.load_images(found, chosen, as_places(places).work), metrics)


def record_images(
    images: str | Path,
    prompts: str | Path | None = None,
    suite: NamedSuite = "standard",
    *,
    name: str,
    places: NamedPlaces = "results",
    device: str | None = None,
) -> Path:
    """Score images made elsewhere, write a record, which leaderboard and gate read, and return its folder.

    The record belongs to the suite itself where the prompts are the suite's, in any order where captions are the folder's own, so that
    its row stands beside the models', and to `<name>-custom` otherwise. A suite that draws several images of each prompt takes as many with
    each caption, in any order. It has win rates over the teacher, but no agreement, which needs the teacher's noise.

    Args:
        images, prompts, suite, device: see `score`.
        name: what tables call the images.

    Raises:
        UserError: see `score`; or the name is invalid or that of a model of the catalogue.
    """
    _check_paths(images, prompts)
    from sdbench.run import external
    from sdbench.run.context import RunContext, prepare

    chosen, places = load_suite(suite), as_places(places)
    found, wanted = external.find_images(Path(images), Path(prompts) if prompts else None, chosen), [*chosen.prompt_list().values()]
    if chosen.samples > 1 or not prompts:
        found = found.in_order_of(wanted * chosen.samples)
    if [*found.prompts] != wanted * chosen.samples:
        if chosen.samples > 1:
            raise UserError(
                f"suite {chosen.name!r} takes {chosen.samples} images of each of its {len(wanted)} prompts, but the {len(found.prompts)} "
                f"images in {images} have other captions; name a suite file with your prompts, or a suite that takes one image of each"
            )
        chosen = Overrides(prompts=prompts or images).apply(chosen)
    context = RunContext(chosen, machine.choose_device(device), places.results, places.work, only="quality")
    prepare(context)
    return external.record_images(found, name, context)


def _check_paths(images: str | Path, prompts: str | Path | None) -> None:
    """Check that images and prompts exist, before the slow imports of what reads them.

    Raises:
        UserError: one does not.
    """
    if not Path(images).is_dir():
        raise UserError(f"there is no folder {images}; name the folder of the images with --images")
    if prompts and (not Path(prompts).exists() or Path(prompts).is_dir()):
        raise UserError(f"there is no file {prompts}; name a text file with one prompt per line with --prompts")
