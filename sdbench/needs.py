"""What a suite needs that is not on this disk; asks nobody and fetches nothing."""

import os
from pathlib import Path

from huggingface_hub import constants

from sdbench import assets, prompts, reference, suites, weights
from sdbench.suites import Suite
from sdbench.weights import RemoteFile


def files(suite: Suite) -> list[RemoteFile]:
    """Files of evaluators, prompts and latent that the run will fetch."""
    names = [name for name in map(prompts.asset, _inputs(suite)) if name]
    return weights.absent([*assets.needed(suite.own_metrics), *map(assets.named, names)])


def lacking(suite: Suite, runs: Path) -> list[str]:
    """What else is not here, in words: prompts of the Hub or of a file, a reference; and how to get it."""
    words = [f"prompts {what} are not on this disk" for what in _inputs(suite) if not prompts.asset(what) and not _is_here(what)]
    name = suite.reference
    if suite.family and name not in (None, "scenes") and not any(card.name == name for card in reference.cards(runs)):
        words.append(f"reference {name!r}, so every distance to it will be missing: {reference.how_to_build(name, 'ENCODER')}")
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


def _inputs(suite: Suite) -> list[str]:
    return [what for what in (suite.prompts.path if suite.prompts else None, suite.noise.file) if what]


def _is_here(what: str) -> bool:
    if name := prompts.asset(what):
        return not weights.absent([assets.named(name)])
    return prompts.located(what, suites.find(what)) != what or Path(what).exists() or _is_prepared(what)


def _is_prepared(name: str) -> bool:
    """Whether `datasets`, which takes seconds to import, has a Hub data set in its cache, where names are in snake case."""

    def plain(word: str) -> str:
        return word.lower().replace("_", "")

    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    return any(plain(folder.name) == plain(name.replace("/", "")) for folder in cache.glob("*___*"))
