"""What a suite needs that is not on this disk; asks nobody and fetches nothing."""

import os
from glob import glob
from pathlib import Path

from huggingface_hub import constants

from sdbench import suites
from sdbench.assets import catalogue, prompts, weights
from sdbench.assets.weights import RemoteFile
from sdbench.reference import cards
from sdbench.suites import Suite


def files(suite: Suite) -> list[RemoteFile]:
    """Files of evaluators, prompts and latent that the run will fetch."""
    names = [name for name in map(prompts.asset_name, _inputs(suite)) if name]
    return weights.missing_files([*catalogue.evaluators_for(suite.own_metrics), *map(catalogue.get_asset, names)])


def lacking(suite: Suite, runs: Path) -> list[str]:
    """What else is not here, in words: prompts of the Hub or of a file, a reference; and how to get it."""
    words = [
        f"{kind} {what}: not on this disk" for what, kind in _inputs(suite).items() if not prompts.asset_name(what) and not _is_here(what)
    ]
    name = suite.reference
    if suite.family and name not in (None, "scenes") and not any(card.name == name for card in cards.list_cards(runs)):
        words.append(f"reference {name!r}, so every distance to it will be missing: {cards.how_to_build(name, 'ENCODER')}")
    return words


def text(suite: Suite, runs: Path) -> list[str]:
    """All of it in a few lines."""
    sizes: dict[str, int] = {}
    for file in files(suite):
        sizes[file.repository] = sizes.get(file.repository, 0) + file.size_bytes
    fetched = ", ".join(f"{place} ({weights.size_text(size)})" for place, size in sizes.items())
    return [*([f"not on this disk: {fetched}"] if fetched else []), *(f"missing: {what}" for what in lacking(suite, runs))]


def inputs_are_here(suite: Suite) -> bool:
    """Whether the suite's prompts and latent are on this disk, so that it has a digest."""
    return all(map(_is_here, _inputs(suite)))


def _inputs(suite: Suite) -> dict[str, str]:
    """What the suite takes from elsewhere -> what it is."""
    kinds = {"prompts": suite.prompts.path if suite.prompts else None, "latent": suite.noise.file}
    return {what: kind for kind, what in kinds.items() if what}


def _is_here(what: str) -> bool:
    if name := prompts.asset_name(what):
        return not weights.missing_files([catalogue.get_asset(name)])
    there = Path(what).exists() or any(glob(what, recursive=True))  # noqa: PTH207  # absolute, too
    return there or prompts.locate(what, suites.find(what)) != what or _is_prepared(what)


def _is_prepared(name: str) -> bool:
    """Whether `datasets`, which takes seconds to import, has a Hub data set in its cache, where names are in snake case."""

    def plain(word: str) -> str:
        return word.lower().replace("_", "")

    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    return any(plain(folder.name) == plain(name.replace("/", "")) for folder in cache.glob("*___*"))
