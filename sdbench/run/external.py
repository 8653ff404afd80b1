"""Pictures made elsewhere, and their prompts: checked, and kept like one's own, so that every metric takes them alike."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from sdbench.arrays import U8
from sdbench.assets.prompts import read_lines
from sdbench.disk import digest
from sdbench.encoders.memory import evaluators_on
from sdbench.errors import UserError
from sdbench.generate import Job
from sdbench.models.catalogue import CATALOGUE
from sdbench.models.spec import NAME
from sdbench.probes.driver import Probed
from sdbench.protocols.base import BLOCK, Subject
from sdbench.records import Model
from sdbench.run.context import Bench, check_captions
from sdbench.run.recording import record_of, subject_of, to_score
from sdbench.scenes.render import SIZE_PX
from sdbench.store import SUFFIXES, Store, read_images
from sdbench.suites import Suite
from sdbench.tables import join_words


def subject(images: Path, prompts: Path, suite: Suite, runs: Path) -> Subject:
    """The pictures of a folder, in the order of their names, under the lines of a text file, to be scored by a suite.

    Raises:
        UserError: their numbers differ, one of the files cannot be read, their names have two orders, or the suite's family has no such pictures.
    """
    if not images.is_dir() or not prompts.exists() or prompts.is_dir():
        raise UserError(
            f"--images takes a folder and --prompts a text file; found {images} and {prompts}, of which one is missing or of the other kind"
        )
    if suite.family is None:
        raise UserError(f"suite {suite.name!r} is a part, of no family; score by one that includes it, such as 'standard' or 'quality'")
    paths, texts = _in_order(path for path in images.iterdir() if path.suffix.lower() in SUFFIXES), read_lines(prompts)
    if not paths or len(paths) != len(texts):
        raise UserError(
            f"{images} holds {len(paths)} pictures and {prompts} {len(texts)} prompts; there must be a prompt for each picture, in the order of the file names"
        )
    if suite.family == "scenes":
        _check_scenes(images, paths[0], prompts, texts)
    return replace(kept(_read(paths), texts, runs), reference=suite.reference)


def record(images: Path, prompts: Path, name: str, setting: Bench) -> Path:
    """Score pictures as `subject` takes them, whose prompts are those of the setting's suite, and write the record => its folder.

    Raises:
        UserError: as `subject`, or it cannot be called so.
    """
    if name in CATALOGUE or not NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot name pictures: letters, digits and . _ + - only, and no model of the catalogue; choose another --name"
        )
    pictures, listed = subject(images, prompts, setting.suite, setting.runs), setting.suite.prompt_list().items()
    todo = [Job(prompt_id, 0, text, image) for (prompt_id, text), image in zip(listed, pictures.images, strict=True)]
    model = Model(name=name, architecture="", source=f"images:{_described(images, pictures)}", weights_digest=None)
    with evaluators_on(setting.device):
        return record_of(model, setting, to_score(model, setting, pictures.store, todo), Probed({}, ""), {})


def kept(pictures: Iterable[U8], prompts: Sequence[str], runs: Path) -> Subject:
    """Pictures, H x W x 3 each, kept as PNG in a store of their own."""
    store, todo = Store(runs, {"pictures": "made elsewhere"}), []
    for row, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        name = digest([picture.shape, hashlib.sha256(picture.tobytes()).hexdigest()])
        if store.missing([name]):
            store.put(name, picture)
        todo.append(Job(f"{row:05d}", 0, prompt, name))
    return subject_of(store, todo, runs)


def _described(images: Path, pictures: Subject) -> str:
    """The folder's name, and what moves every metric: the pictures' size and the formats of their files."""
    height, width, _ = pictures.store.read(pictures.images[:1])[0].shape
    formats = set()
    for path in images.iterdir():
        if path.suffix.lower() in SUFFIXES:
            with Image.open(path) as picture:
                formats.add(picture.format or "")
    return f"{images.resolve().name}, {width} x {height} px, {join_words(sorted(formats))}"


def _in_order(paths: Iterable[Path]) -> list[Path]:
    """Pictures by their names, where those have one order: as text `10.png` comes before `2.png`."""
    by_text = sorted(paths)
    by_number = sorted(by_text, key=_numbered)
    for text, number in zip(by_text, by_number, strict=True):
        if text != number:
            raise UserError(
                f"{text.parent}: {text.name} comes before {number.name} as text and after it by number, so that it is not clear which prompt each is of; "
                "give their numbers as many digits, as in 00002.png"
            )
    return by_text


def _numbered(path: Path) -> list[str | int]:
    """A name as text and numbers in turn."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", path.name))]


def _read(paths: Sequence[Path]) -> Iterator[U8]:
    """Pictures of one size, a block of them in memory at a time."""
    size = None
    for start in range(0, len(paths), BLOCK):
        block = read_images(paths[start : start + BLOCK], "replace or remove it, and its prompt")
        size = size or block.shape[1:3]
        if block.shape[1:3] != size:
            raise UserError(
                f"picture {paths[start]} is {block.shape[2]} x {block.shape[1]} px, the first is {size[1]} x {size[0]}; all must be of one size."
            )
        yield from block


def _check_scenes(images: Path, first: Path, prompts: Path, captions: Sequence[str]) -> None:
    """The embedded family's evaluators would fail on pictures of another size, and make something up of other captions."""
    height, width, _ = next(_read([first])).shape
    if (height, width) != (SIZE_PX, SIZE_PX):
        raise UserError(
            f"{images} holds pictures of {width} x {height} px; scenes are of {SIZE_PX} x {SIZE_PX}. Full-size ones are scored by --suite standard"
        )
    check_captions(captions, str(prompts))
