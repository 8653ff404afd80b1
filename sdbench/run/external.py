"""Images made elsewhere, and their prompts: checked, and stored like images of a run, so that every metric can take them."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Self

from PIL import Image

from sdbench.arrays import U8
from sdbench.assets.prompts import COLUMNS, read_lines
from sdbench.disk import digest
from sdbench.encoders.inference import BLOCK, evaluators_on
from sdbench.errors import UserError
from sdbench.generate import Job
from sdbench.image_files import FORMATS, SUFFIXES, read_images
from sdbench.models.catalogue import CATALOGUE
from sdbench.models.spec import NAME, NAME_RULE
from sdbench.notes import progress
from sdbench.probes.driver import ProbeResult
from sdbench.protocols.base import Subject
from sdbench.records import Model
from sdbench.records.names import natural_key
from sdbench.run.context import RunContext, check_captions
from sdbench.run.recording import build_subject, plain_subject, write_record
from sdbench.scenes.render import SIZE_PX
from sdbench.store import Store
from sdbench.suites import Suite
from sdbench.tables import join_words


@dataclass(frozen=True)
class CaptionedFiles:
    """Image files of a folder, with the prompt of each, in the same order."""

    folder: Path
    paths: Sequence[Path]
    prompts: Sequence[str]

    def in_order_of(self, prompts: Sequence[str]) -> Self:
        """The images in the order of a list of prompts; as they are, where they have others."""
        if sorted(self.prompts) != sorted(prompts):
            return self
        by_prompt: dict[str, list[Path]] = {}
        for prompt, path in sorted(zip(self.prompts, self.paths, strict=True), reverse=True):
            by_prompt.setdefault(prompt, []).append(path)
        return replace(self, paths=[by_prompt[prompt].pop() for prompt in prompts], prompts=prompts)


def find_images(folder: Path, prompts: Path | None, suite: Suite) -> CaptionedFiles:
    """The images in a folder with their prompts, to be scored by a suite.

    Args:
        prompts: text file with one prompt per line, in the order of the images' names; None for the captions in the folder.

    Raises:
        UserError: there are no images, images lack prompts or prompts images, a file cannot be read, the order of the
            names is ambiguous, or the suite's family has no such images.
    """
    paths = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES]
    found = _pair_by_order(folder, paths, prompts) if prompts else _read_captioned(folder, paths)
    if not found.paths:
        raise UserError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    if suite.family == "scenes":
        _check_scenes(found, prompts or folder)
    return found


def load_images(found: CaptionedFiles, suite: Suite, runs: Path) -> Subject:
    """Store images, to be scored by a suite; where it draws several of each prompt, those with one caption are samples of one prompt.

    Raises:
        UserError: a file cannot be read, or has another size than the first.
    """
    subject = replace(store_images(_read_images(found.paths), found.prompts, runs), reference=suite.reference)
    if suite.samples == 1:
        return subject
    ids = dict(zip(reversed(found.prompts), reversed(subject.prompt_ids), strict=True))  # of the first image of each caption
    seen, samples = Counter[str](), list[int]()
    for prompt in found.prompts:
        samples.append(seen[prompt])
        seen[prompt] += 1
    return replace(subject, prompt_ids=[ids[prompt] for prompt in found.prompts], samples=samples)


def record_images(found: CaptionedFiles, name: str, context: RunContext) -> Path:
    """Score images by the context's suite, whose prompts they have, in the order of its images, write the record, and return its folder.

    Args:
        name: what tables call the images.

    Raises:
        UserError: a file cannot be read, or has another size than the first; or the name cannot be used.
    """
    if name in CATALOGUE or not NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot name images: {NAME_RULE}, and not the name of a model in the catalogue; choose another with --name"
        )
    images = store_images(_read_images(found.paths), found.prompts, context.runs)
    prompt_list = context.suite.prompt_list().items()
    keys = [(prompt_id, sample, text) for sample in range(context.suite.samples) for prompt_id, text in prompt_list]
    jobs = [Job(*key, image_id) for key, image_id in zip(keys, images.image_ids, strict=True)]
    model = Model(name=name, architecture="", source=f"images:{_describe_source(found, images)}", weights_digest=None)
    with evaluators_on(context.device):
        return write_record(model, context, build_subject(model, context, images.store, jobs), ProbeResult({}, ""), {})


def store_images(images: Iterable[U8], prompts: Sequence[str], runs: Path) -> Subject:
    """Store images, H x W x 3 each, as PNG in a store of their own, a block of them on all cores, and return them as what is scored."""
    store, source, names = Store(runs, {"images": "made elsewhere"}), iter(images), list[str]()

    def put(image: U8) -> str:
        name = digest([image.shape, hashlib.sha256(image.tobytes()).hexdigest()])
        if store.missing([name]):
            store.put(name, image)
        return name

    bar = progress(total=len(prompts), desc="storing images", unit="image", delay=5, leave=False)
    with bar, ThreadPoolExecutor(os.cpu_count()) as writers:
        while block := list(islice(source, BLOCK)):
            names += writers.map(put, block)
            bar.update(len(block))
    return plain_subject(store, [Job(f"{row:05d}", 0, *pair) for row, pair in enumerate(zip(prompts, names, strict=True))], runs)


def _describe_source(found: CaptionedFiles, images: Subject) -> str:
    """The folder's name, with the size of the images and the formats of their files, which affect every metric."""
    height, width, _ = images.store.read(images.image_ids[:1])[0].shape
    formats = set()
    for path in found.paths:
        with Image.open(path, formats=FORMATS) as image:
            formats.add(image.format or "")
    return f"{found.folder.resolve().name}, {width} x {height} px, {join_words(sorted(formats))}"


def _pair_by_order(folder: Path, paths: Iterable[Path], prompts: Path) -> CaptionedFiles:
    """The images of a folder, in the order of their names, with the lines of a text file."""
    found = CaptionedFiles(folder, _sort_by_name(paths), read_lines(prompts))
    if found.paths and len(found.paths) != len(found.prompts):
        raise UserError(
            f"{folder} holds {len(found.paths)} images and {prompts} {len(found.prompts)} prompts; there must be a prompt for each image, "
            "in the order of the file names"
        )
    return found


def _read_captioned(folder: Path, paths: Sequence[Path]) -> CaptionedFiles:
    """The images of a folder with the captions in it, as for training."""
    from sdbench.assets.sources import read_rows, read_texts

    try:
        rows = read_rows(str(folder))
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')}. Or name a text file of prompts with --prompts") from error
    (column,) = (images := rows.images()).column_names
    files = [image["path"] and Path(image["path"]) for image in images[column]]
    if missing := [path for path in files if not (path and path.is_file())]:
        raise UserError(f"{folder}: captions without an image file, such as that of {missing[0]}; remove them, or unpack the images")
    texts = read_texts(rows, rows.column(None, COLUMNS, "--prompts, which takes a text file"))
    captions = [(text or "").strip() for text in texts]
    blank = {file for file, caption in zip(files, captions, strict=True) if not caption}
    if without := blank | {folder.resolve() / path.name for path in paths} - {*files}:
        raise UserError(
            f"{folder}: {len(without)} images have no caption, such as {min(without).name}; write theirs, remove them, or name a text file "
            "of prompts with --prompts"
        )
    return CaptionedFiles(folder, files, captions)


def _sort_by_name(paths: Iterable[Path]) -> list[Path]:
    """The paths sorted by name; an error where the order is ambiguous: `10.png` comes before `2.png` as text, after it by number."""
    by_text = sorted(paths)
    by_number = sorted(by_text, key=lambda path: natural_key(path.name))
    for text, number in zip(by_text, by_number, strict=True):
        if text != number:
            raise UserError(
                f"{text.parent}: {text.name} comes before {number.name} as text and after it by number, so it is not clear which prompt "
                "belongs to which; pad their numbers to the same number of digits, as in 00002.png"
            )
    return by_text


def _read_images(paths: Sequence[Path]) -> Iterator[U8]:
    """Read images of one size, with a block of them in memory at a time: each together with the first image, whose size all must have."""
    for start in range(0, len(paths), BLOCK):
        yield from read_images([paths[0], *paths[start : start + BLOCK]], "replace or remove it, and its prompt")[1:]


def _check_scenes(found: CaptionedFiles, source: Path) -> None:
    """Check size and captions: the embedded family's evaluators fail on other sizes and give meaningless numbers for other captions."""
    height, width, _ = next(_read_images(found.paths[:1])).shape
    if (height, width) != (SIZE_PX, SIZE_PX):
        raise UserError(
            f"{found.folder} holds images of {width} x {height} px; scenes are of {SIZE_PX} x {SIZE_PX}. Full-size ones are scored by "
            "--suite standard"
        )
    check_captions(found.prompts, str(source))
