"""Cuts: which parts of a teacher a student keeps, in the teacher's module paths and numbers."""

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal, TypeVar

from sdbench.errors import UserError, unknown_name
from sdbench.models.architectures import CROSS, PLAIN, Config, Shape, depths, resnet_counts

MIDDLE_ATTENTION = "mid_block.attentions.0"
Kept = TypeVar("Kept")  # the numbers that a row keeps


@dataclass(frozen=True)
class Cut:
    """Which parts of a teacher a student keeps, in the teacher's paths and numbers.

    Attributes:
        blocks: the transformer blocks that stay, in order, by attention. A removed attention has no entry.
        mid_resnet: the middle resnet that stays when the middle attention is removed, or "none" if the whole middle is removed.
        resnets: the resnets that stay, by shortened down or up block.
    """

    blocks: Mapping[str, tuple[int, ...]]
    mid_resnet: int | Literal["none"]
    resnets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def relative_to(self, previous: "Cut") -> "Cut":
        """The cut that makes the same student from the student of `previous` instead of from the teacher."""
        blocks = {
            str(previous.student_path(path)): tuple(previous.blocks[path].index(block) for block in kept)
            for path, kept in self.blocks.items()
        }
        resnets = {
            block: tuple(previous.resnets[block].index(resnet) for resnet in kept) if block in previous.resnets else kept
            for block, kept in self.resnets.items()
        }
        return Cut(blocks, self.mid_resnet if MIDDLE_ATTENTION in previous.blocks or self.mid_resnet == "none" else 0, resnets)

    def student_path(self, path: str) -> str | None:
        """The student's path of the teacher's module at `path`, or None if that is removed. Transformer blocks keep their numbers here."""
        if path.startswith("mid_block") and MIDDLE_ATTENTION not in self.blocks and self.mid_resnet == "none":
            return None
        block, name, number, rest = _split_path(path)
        if block == "mid_block" and name == "resnets" and MIDDLE_ATTENTION not in self.blocks:
            return ".".join([block, name, "0", *rest]) if int(number) == self.mid_resnet else None
        if block not in self.resnets:
            return path
        if int(number) not in self.resnets[block]:
            return None
        return ".".join([block, name, str(self.resnets[block].index(int(number))), *rest])

    def teacher_path(self, path: str) -> str:
        """The teacher's path of the student's module at `path`. Transformer blocks keep their numbers here."""
        block, name, number, rest = _split_path(path)
        if block == "mid_block" and name == "resnets" and MIDDLE_ATTENTION not in self.blocks:
            return ".".join([block, name, str(self.mid_resnet), *rest])
        return ".".join([block, name, str(self.resnets[block][int(number)]), *rest]) if block in self.resnets else path

    @property
    def depths(self) -> dict[str, int]:
        """Number of transformer blocks of each attention, by the student's path."""
        return {str(self.student_path(path)): len(kept) for path, kept in self.blocks.items()}

    def shape(self, teacher: Config) -> Shape:
        """The shape of the student that is cut from a teacher."""
        resnets = resnet_counts(teacher) | {block: len(kept) for block, kept in self.resnets.items()}
        without_attention = None if self.mid_resnet == "none" else PLAIN
        return Shape(resnets, self.depths, CROSS if MIDDLE_ATTENTION in self.blocks else without_attention)

    def keep_resnets(self, rows: Iterable[tuple[str, tuple[int, ...]]], counts: Mapping[str, int], where: str) -> "Cut":
        """A cut with only these resnets, and without the attentions after the removed ones.

        Args:
            rows: pattern of down or up blocks, resnets that stay.
            counts: number of resnets in each of the teacher's blocks.
            where: origin of the rows, for error messages.

        Raises:
            UserError: a row names something that the network does not have, two rows name one block, or a row keeps no resnet or
                keeps them out of order.
        """
        present = {block: self.resnets.get(block, tuple(range(count))) for block, count in counts.items()}
        kept_by_block = _expand_rows(rows, present, "block", where)
        for block, kept in kept_by_block.items():
            _check_kept("resnet", block, kept, present[block], where)
        shorter = replace(self, resnets={**self.resnets, **kept_by_block})
        return replace(shorter, blocks={path: kept for path, kept in self.blocks.items() if shorter.student_path(path)})

    def keep_blocks(self, rows: Iterable[tuple[str, tuple[int, ...] | Literal["all"]]], where: str) -> "Cut":
        """A cut with only these transformer blocks.

        Args:
            rows: pattern of attentions, blocks that stay.
            where: origin of the rows, for error messages.

        Raises:
            UserError: a row names something that the network does not have, two rows name one attention, or a row keeps no block
                (except of the middle's attention) or keeps them out of order.
        """
        rows_by_path = _expand_rows(rows, self.blocks, "attention", where)
        kept_by_path = {path: self.blocks[path] if blocks == "all" else blocks for path, blocks in rows_by_path.items()}
        for path, kept in kept_by_path.items():
            _check_kept("block", path, kept, self.blocks[path], where)
        return replace(self, blocks={path: kept for path, kept in {**self.blocks, **kept_by_path}.items() if kept})


def _split_path(path: str) -> tuple[str, str, str, list[str]]:
    """Split `up_blocks.0.resnets.2.conv1` into ("up_blocks.0", "resnets", "2", ["conv1"]); all are empty without a resnet or attention."""
    match = re.fullmatch(r"(mid_block|(?:down|up)_blocks\.\d+)\.(resnets|attentions)\.(\d+)(?:\.(.+))?", path)
    return (match[1], match[2], match[3], match[4].split(".") if match[4] else []) if match else ("", "", "", [])


def all_blocks(config: Config) -> dict[str, tuple[int, ...]]:
    """All transformer blocks of a UNet, by attention."""
    return {path: tuple(range(depth)) for path, depth in depths(config).items()}


def block_paths(config: Config) -> dict[str, list[str]]:
    """The paths of all transformer blocks of a UNet, by attention."""
    return {path: [f"{path}.transformer_blocks.{block}" for block in blocks] for path, blocks in all_blocks(config).items()}


def matches(pattern: str, path: str) -> bool:
    """Whether a module path matches a pattern, part by part."""
    pattern_parts, parts = pattern.split("."), path.split(".")
    return len(pattern_parts) == len(parts) and all(itertools.starmap(fnmatchcase, zip(parts, pattern_parts, strict=True)))


def _expand_rows(rows: Iterable[tuple[str, Kept]], paths: Iterable[str], kind: str, where: str) -> dict[str, Kept]:
    """The rows by path, given rows by pattern."""
    paths, by_path = list(paths), dict[str, Kept]()
    for pattern, kept in rows:
        matching = [path for path in paths if matches(pattern, path)]
        if not matching:
            raise unknown_name(f"{kind} in {where}", pattern, paths)
        if duplicates := [path for path in matching if path in by_path]:
            raise UserError(f"{where}: two rows name {duplicates[0]}; expected one")
        by_path |= dict.fromkeys(matching, kept)
    return by_path


def _check_kept(kind: str, path: str, kept: tuple[int, ...], present: tuple[int, ...], where: str) -> None:
    if missing := [number for number in kept if number not in present]:
        raise UserError(f"{where}: {path} has no {kind} {missing[0]}; it has {', '.join(map(str, present))} at this stage")
    if list(kept) != sorted(set(kept)):
        raise UserError(f"{where}: {path} keeps {list(kept)}; expected each {kind} once, in rising order")
    if not kept and path != MIDDLE_ATTENTION:
        raise UserError(f"{where}: {path} keeps no {kind}; expected at least one (only {MIDDLE_ATTENTION} can be removed)")
