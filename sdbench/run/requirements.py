"""What a suite needs that is not on this disk, found out without the network."""

import os
from collections.abc import Iterable
from glob import glob
from pathlib import Path

from huggingface_hub import constants

from sdbench import suites
from sdbench.assets import catalogue, prompts, weights
from sdbench.assets.weights import RemoteFile
from sdbench.disk import size_text
from sdbench.errors import UserError
from sdbench.reference import cards
from sdbench.reference.encoders import ENCODER_OF
from sdbench.suites import Suite
from sdbench.tables import join_words


def files_to_fetch(suite: Suite) -> list[RemoteFile]:
    """Files of evaluators, prompts and latent that a run will fetch."""
    names = [name for name in map(prompts.asset_name, _inputs(suite)) if name]
    return weights.missing_files([*catalogue.evaluators_for(suite.own_metrics), *map(catalogue.get_asset, names)])


def missing_inputs(suite: Suite, runs: Path) -> list[str]:
    """Descriptions of what else is missing: prompts on the Hub or in a file, and a reference, with how to build it."""
    missing = [
        f"{kind} {what}: not on this disk" for what, kind in _inputs(suite).items() if not prompts.asset_name(what) and not _is_here(what)
    ]
    reference = missing_reference(suite, suite.own_metrics, runs)
    return [*missing, *([reference] if reference else [])]


def missing_reference(suite: Suite, metrics: Iterable[str], runs: Path) -> str | None:
    """Description of what these metrics lack of the suite's reference, with how to build it; None if nothing is missing."""
    name, compared = suite.reference, [metric for metric in metrics if metric in ENCODER_OF]
    if not compared or name == "scenes":
        return None
    if name is None:
        advice = (
            'name one, with `reference = "NAME"` in its file or --reference NAME (`sdbench reference list` shows those on this machine)'
        )
        return f"reference, of which the suite names none, so {join_words(compared)} will be missing: {advice}"
    built = {card.encoder for card in cards.list_cards(runs) if card.name == name}
    lacking = [metric for metric in compared if ENCODER_OF[metric] not in built]
    if not lacking:
        return None
    encoders = sorted({ENCODER_OF[metric] for metric in lacking})
    return f"reference {name!r}, so {join_words(lacking)} will be missing: {cards.how_to_build(name, encoders)}"


def describe(suite: Suite, runs: Path) -> list[str]:
    """Lines of text on all that the suite needs and this disk lacks."""
    fetched = sizes_text(files_to_fetch(suite))
    return [*([f"not on this disk: {fetched}"] if fetched else []), *(f"missing: {what}" for what in missing_inputs(suite, runs))]


def sizes(files: Iterable[RemoteFile]) -> dict[str, int]:
    """The repositories of files, with the bytes of each."""
    found: dict[str, int] = {}
    for file in files:
        found[file.repository] = found.get(file.repository, 0) + file.size_bytes
    return found


def sizes_text(files: Iterable[RemoteFile]) -> str:
    """The repositories of files, with how much of each they are; empty without files."""
    return ", ".join(f"{place} ({size_text(size)})" for place, size in sizes(files).items())


def fetch_evaluators(metrics: Iterable[str]) -> list[str]:
    """Fetch the evaluators of these metrics, and describe those that cannot be had, with the reasons."""
    lacking = []
    for asset in catalogue.evaluators_for(metrics):
        try:
            weights.find(asset.name)
        except UserError as error:
            lacking.append(str(error))
    return lacking


def inputs_are_here(suite: Suite) -> bool:
    """Whether the suite's prompts and latent are on this disk, so that its digest can be computed."""
    return all(map(_is_here, _inputs(suite)))


def _inputs(suite: Suite) -> dict[str, str]:
    """Place of each external input of the suite -> "prompts" or "latent"."""
    places = {"prompts": suite.prompts.path, "latent": suite.noise.file}
    return {place: kind for kind, place in places.items() if place}


def _is_here(what: str) -> bool:
    """Whether an input, by its place, is on this disk."""
    if name := prompts.asset_name(what):
        return not weights.missing_files([catalogue.get_asset(name)])
    exists = Path(what).exists() or any(glob(what, recursive=True))  # noqa: PTH207  # patterns may be absolute
    return exists or prompts.locate(what, suites.find(what)) != what or _is_prepared(what)


def _is_prepared(name: str) -> bool:
    """Whether `datasets` has a dataset of the Hub in its cache, where names are in snake case; importing it would take seconds."""

    def plain(word: str) -> str:
        return word.lower().replace("_", "")

    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    return any(plain(folder.name) == plain(name.replace("/", "")) for folder in cache.glob("*___*"))
