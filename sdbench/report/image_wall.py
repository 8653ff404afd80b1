"""The image wall: thumbnails from the records of a section, with the same prompt and noise in each row.

Records hold at most 64 images for each model. The page takes at most 200 rows, and no more bytes than an e-mail could carry:
alternately rows with the worst images and rows drawn at random. The rest goes into a folder beside the page.
"""

import base64
import io
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sdbench import records, tables
from sdbench.errors import UserError
from sdbench.image_files import naming
from sdbench.leaderboard import MAX_MODELS
from sdbench.leaderboard.standings import Row, Section
from sdbench.records import influenced_metric
from sdbench.records.names import is_agreement
from sdbench.report.worst import WorstImages

MAX_SHOTS = 200
PAGE_BYTES = 3_200_000  # all images of a page together, as base64
_AS_IS_BYTES, _SIDE_PX, _QUALITY, _SEED = 8192, 256, 80, 0


@dataclass(frozen=True)
class Thumbnail:
    """A thumbnail.

    Attributes:
        key: identifies it within its section: model and file.
        src: for an `<img>`: a data URL, or a path relative to the page.
        scores: the image's score by each metric, as text.
    """

    key: str
    model: str
    src: str
    width: int
    height: int
    scores: str


@dataclass(frozen=True)
class Shot:
    """A prompt with one initial noise, and each model's image from both; None where the model's record does not hold one.

    Attributes:
        name: of the images, see `Scores.image_names`.
        worst: whether it is shown because some model did badly on it, and not drawn at random.
        loss: the largest loss of a model on it against the teacher, below 0; 0 where there is none.
    """

    name: str
    prompt: str
    worst: bool
    loss: float
    images: tuple[Thumbnail | None, ...]

    @property
    def n_bytes(self) -> int:
        """Size of its images in the page."""
        return sum(len(image.src) for image in self.images if image)


@dataclass(frozen=True)
class Wall:
    """The images that a section shows, in the suite's order, and the names of the images that are left over."""

    models: tuple[str, ...]
    shots: tuple[Shot, ...]
    left: tuple[str, ...]


class Album:
    """The thumbnails of a section's first models, and which of its images are the worst."""

    def __init__(self, section: Section, worst: WorstImages) -> None:
        self.worst = worst
        self.rows: Sequence[Row] = [row for row in section.rows if row.thumbnails][:MAX_MODELS]
        self.models = tuple(row.name for row in self.rows)
        self._files = [
            {**_copies_in_students(section, row), **row.thumbnails} if row is section.teacher else row.thumbnails for row in self.rows
        ]
        self._places = [{name: at for at, name in enumerate(row.scores.image_names)} for row in self.rows]
        self._texts: dict[str, str] = {}
        for row in self.rows:
            self._texts |= dict(zip(row.scores.image_names, row.scores.prompt_texts, strict=True))
        self.names = sorted(set().union(*self._files))

    def shot(self, name: str, beside: Path | None = None) -> Shot:
        """The images of this name, embedded in the page, or copied to a folder `beside` it.

        Raises:
            UserError: an image cannot be read.
            OSError: the folder cannot be written.
        """
        images = (self._image(place, name, beside) for place in range(len(self.rows)))
        text = self._texts.get(name, name)
        return Shot(name, text, name in self.worst.names, self.worst.losses.get(name, 0.0), tuple(images))

    def _image(self, place: int, name: str, beside: Path | None) -> Thumbnail | None:
        path, row = self._files[place].get(name), self.rows[place]
        if path is None:
            return None
        content, kind, (width, height) = _encode(path)
        if beside is None:
            src = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        else:
            # The record's digest is part of the path, since a model may have a row with its own weights and one with random weights.
            file = beside / row.folder.parent.name / row.folder.name / f"{path.stem}.{kind}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            src = file.relative_to(beside.parent).as_posix()
        return Thumbnail(f"{row.name}/{name}", row.name, src, width, height, self._scores(place, name))

    def _scores(self, place: int, name: str) -> str:
        at, columns = self._places[place].get(name), self.rows[place].scores.columns
        if at is None:
            return ""
        shown = (metric for metric in columns if not influenced_metric(metric))
        return ", ".join(f"{metric} {tables.format_number(float(columns[metric][at]))}" for metric in shown)


def _copies_in_students(section: Section, teacher: Row) -> dict[str, Path]:
    """The teacher's images that the records of students hold, of students that were compared with this very teacher."""
    digest = records.teacher_digest(teacher.folder, teacher.record)
    return {
        name: path
        for row in section.models
        if any(is_agreement(value.name) and value.reference == digest for value in row.record.values)
        for name, path in records.thumbnail_files(row.folder, of_teacher=True).items()
    }


def build_wall(album: Album, n_bytes: int) -> Wall:
    """Choose and read the images of a section that go into the page, at most `n_bytes` of them, and return their wall.

    Raises:
        UserError: an image cannot be read.
    """
    others = [name for name in album.names if name not in album.worst.names]
    random.Random(_SEED).shuffle(others)  # noqa: S311  # no secret
    worst = [name for name in album.worst.names if name in album.names]
    shots: list[Shot] = []
    for name in filter(None, itertools.chain.from_iterable(itertools.zip_longest(worst, others))):
        shot = album.shot(name)
        n_bytes -= shot.n_bytes
        if n_bytes < 0 or len(shots) == MAX_SHOTS:
            break
        shots.append(shot)
    shown = {shot.name for shot in shots}
    left = tuple(name for name in album.names if name not in shown)
    return Wall(album.models, tuple(sorted(shots, key=lambda shot: shot.name)), left)


def build_rest_wall(album: Album, left: Sequence[str], beside: Path) -> Wall:
    """Copy the images that are left over to a folder `beside` the page, and return their wall.

    Raises:
        UserError: an image cannot be read, or the folder cannot be written.
    """
    try:
        return Wall(album.models, tuple(album.shot(name, beside) for name in left), ())
    except OSError as error:
        raise UserError(f"cannot write the images beside the page: {error}; name a writable place with --out.") from error


def _encode(path: Path) -> tuple[bytes, str, tuple[int, int]]:
    """Read an image, unchanged if it is small, else reduced and as WebP; returns bytes, format and (width, height)."""
    with naming(path, "restore it, or delete it: the page works without it"):
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if len(content) <= _AS_IS_BYTES:
                image.verify()
                return content, "png", image.size
            image.thumbnail((_SIDE_PX, _SIDE_PX))
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "WEBP", quality=_QUALITY)
            return buffer.getvalue(), "webp", image.size
