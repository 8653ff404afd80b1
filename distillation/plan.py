"""Plans: what a network keeps of another, in the other's module paths and numbers; checked against what is there."""

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal, TypeVar

from sdbench.errors import UserError, unknown_name
from sdbench.models.architectures import CROSS, PLAIN

MIDDLE = "mid_block.attentions.0"
Kept = TypeVar("Kept")  # what a row, or a path that it names, keeps


@dataclass(frozen=True)
class Plan:
    """What a network keeps of another, in the other's paths and numbers.

    Attributes:
        blocks: of each attention, the transformer blocks in order; an attention that is gone has no entry.
        mid_resnet: the middle resnet that becomes the only one, or "none" for no middle at all; read where the middle attention is gone.
        resnets: of each down and up block that is shortened, the resnets that stay.
    """

    blocks: Mapping[str, tuple[int, ...]]
    mid_resnet: int | Literal["none"]
    resnets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def within(self, previous: "Plan") -> "Plan":
        """The same network cut from one that `previous` made, instead of from the teacher."""
        blocks = {
            str(previous.place(path)): tuple(previous.blocks[path].index(block) for block in kept) for path, kept in self.blocks.items()
        }
        resnets = {
            block: tuple(previous.resnets[block].index(resnet) for resnet in kept) if block in previous.resnets else kept
            for block, kept in self.resnets.items()
        }
        return Plan(blocks, self.mid_resnet if MIDDLE in previous.blocks or self.mid_resnet == "none" else 0, resnets)

    def place(self, path: str) -> str | None:
        """Where the network has what the other has at this path, transformer blocks aside; None where that went."""
        if path.startswith("mid_block") and MIDDLE not in self.blocks and self.mid_resnet == "none":
            return None
        block, name, number, rest = _layer(path)
        if block not in self.resnets:
            return path
        if int(number) not in self.resnets[block]:
            return None
        return ".".join([block, name, str(self.resnets[block].index(int(number))), *rest])

    def origin(self, path: str) -> str:
        """Where the other has what the network has at this path, transformer blocks aside."""
        block, name, number, rest = _layer(path)
        if block == "mid_block" and name == "resnets" and MIDDLE not in self.blocks:
            return ".".join([block, name, str(self.mid_resnet), *rest])
        return ".".join([block, name, str(self.resnets[block][int(number)]), *rest]) if block in self.resnets else path

    @property
    def depths(self) -> dict[str, int]:
        """Transformer blocks of each of the network's own attentions."""
        return {str(self.place(path)): len(kept) for path, kept in self.blocks.items()}

    @property
    def mid_block_type(self) -> str | None:
        """Of the network's own config."""
        if MIDDLE in self.blocks:
            return CROSS
        return None if self.mid_resnet == "none" else PLAIN

    def shortened(self, rows: Iterable[tuple[str, tuple[int, ...]]], counts: Mapping[str, int], where: str) -> "Plan":
        """The plan with fewer resnets, and with the attentions that stay beside them.

        Args:
            rows: of down and up blocks, and the resnets that stay.
            counts: resnets of each of the other's blocks.
            where: the rows are from, for messages.

        Raises:
            UserError: a row names what the network does not have.
        """
        there = {block: self.resnets.get(block, tuple(range(count))) for block, count in counts.items()}
        named = _by_path(rows, there, "block", where)
        for block, kept in named.items():
            _check_kept("resnet", block, kept, there[block], where)
        shorter = replace(self, resnets={**self.resnets, **named})
        return replace(shorter, blocks={path: kept for path, kept in self.blocks.items() if shorter.place(path)})

    def cut(self, rows: Iterable[tuple[str, tuple[int, ...] | Literal["all"]]], where: str) -> "Plan":
        """The plan with fewer transformer blocks.

        Args:
            rows: of attentions, and the blocks that stay.
            where: the rows are from, for messages.

        Raises:
            UserError: a row names what the network does not have.
        """
        named = _by_path(rows, self.blocks, "attention", where)
        cut = {path: self.blocks[path] if blocks == "all" else blocks for path, blocks in named.items()}
        for path, kept in cut.items():
            _check_kept("block", path, kept, self.blocks[path], where)
        return replace(self, blocks={path: kept for path, kept in {**self.blocks, **cut}.items() if kept})


def _layer(path: str) -> tuple[str, str, str, list[str]]:
    """A path such as `up_blocks.0.resnets.2.conv1` in its parts: block, "resnets" or "attentions", number, rest; all else has no block."""
    found = re.fullmatch(r"(mid_block|(?:down|up)_blocks\.\d+)\.(resnets|attentions)\.(\d+)(?:\.(.+))?", path)
    return (found[1], found[2], found[3], found[4].split(".") if found[4] else []) if found else ("", "", "", [])


def matches(pattern: str, path: str) -> bool:
    """Whether a module path fits a pattern, part by part."""
    wanted, parts = pattern.split("."), path.split(".")
    return len(wanted) == len(parts) and all(itertools.starmap(fnmatchcase, zip(parts, wanted, strict=True)))


def _by_path(rows: Iterable[tuple[str, Kept]], paths: Iterable[str], kind: str, where: str) -> dict[str, Kept]:
    """What the rows, each of a pattern, say of each path that they name."""
    paths, found = list(paths), dict[str, Kept]()
    for pattern, kept in rows:
        named = [path for path in paths if matches(pattern, path)]
        if not named:
            raise unknown_name(f"{kind} in {where}", pattern, paths)
        if twice := [path for path in named if path in found]:
            raise UserError(f"{where}: two rows name {twice[0]}; expected one")
        found |= dict.fromkeys(named, kept)
    return found


def _check_kept(kind: str, path: str, kept: tuple[int, ...], there: tuple[int, ...], where: str) -> None:
    if missing := [number for number in kept if number not in there]:
        raise UserError(f"{where}: {path} has no {kind} {missing[0]}; it has {', '.join(map(str, there))} at this stage")
    if list(kept) != sorted(set(kept)):
        raise UserError(f"{where}: {path} keeps {list(kept)}; expected each {kind} once, in rising order")
    if not kept and path != MIDDLE:
        raise UserError(f"{where}: {path} keeps no {kind}; only {MIDDLE} can go, others need at least one")
