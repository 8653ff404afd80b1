"""Imports point one way: the rooms of the house, from the ground up. A module may import its own floor and those below."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    {"arguments", "arrays", "disk", "errors", "validation", ""},  # "" is sdbench itself: its version
    {"metrics", "models", "records", "scenes", "stats", "training"},
    {"assets", "settings", "suites"},
    {"encoders", "gate", "leaderboard", "machine", "reference", "report", "store", "tables", "torchmetrics"},
    {"protocols"},
    {"generate", "probes", "schedulers", "score"},
    {"doctor", "run"},
    {"api"},
    {"cli", "commands", "__main__"},
)
# Rooms that know even less than their floor allows. `scenes.training` makes weights with `models` and the rest of
# `scenes`; nothing but the command line, and `distillation`, may lean on it.
ONLY = {
    "metrics": {"arrays"},
    "stats": {"arrays"},
    "torchmetrics": {"arrays", "metrics"},
    "arguments": {"errors"},
    "validation": {"errors"},
    "disk": {"errors"},
    "records": {"arrays", "errors", "validation"},
    "tables": {"records"},
    "models": {"errors", "scenes"},
    "scenes": {"arrays", "errors"},
    "scenes.training": {"arrays", "errors", "scenes", "models", "training"},
    "training": {"disk", "errors", "models"},
    "assets": {"disk", "errors", "models"},
    "settings": {"errors", "validation"},
    "suites": {"errors", "validation", "settings", "records", "scenes", "assets"},
    "gate": {"arrays", "disk", "errors", "models", "records", "stats", "suites", "tables", "validation"},
    "leaderboard": {"arrays", "disk", "errors", "models", "records", "stats", "store", "tables", "validation"},
    "report": {"disk", "errors", "gate", "leaderboard", "records", "stats", "tables"},
}
DOORS = {"sdbench": {"sdbench.api"}}  # what a package offers by name though it lies above, imported when it is asked for
TRAINING_IS_FOR = {"scenes.training", "cli", "distillation"}
# `assets` opens data sets and fetches teachers; `settings` and `suites` hold the types that `generate` is called with; `machine` knows
# the commit of a checkout.
DISTILLATION_KNOWS = {
    "",  # the version
    "arguments",
    "arrays",
    "assets",
    "disk",
    "errors",
    "generate",
    "machine",
    "models",
    "probes",
    "records",
    "scenes",
    "scenes.training",
    "settings",
    "store",
    "suites",
    "training",
}
WITHOUT_TORCH = {
    "api",
    "arguments",
    "assets.catalogue",
    "assets.pipelines",
    "assets.prompts",
    "assets.weights",
    "cli",
    "commands",
    "disk",
    "errors",
    "gate",
    "leaderboard",
    "machine",
    "metrics",
    "records",
    "reference.cards",
    "report",
    "run.requirements",
    "settings",
    "stats",
    "suites",
    "tables",
    "validation",
}

SLOW = {"torch", "torchvision", "diffusers", "transformers", "open_clip", "safetensors.torch", "datasets", "cleanfid", "torchmetrics"}


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of both packages."""
    files = [path for package in ("sdbench", "distillation") for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imported(node: ast.AST, name: str) -> Iterator[str]:
    """What an import statement names: modules of ours by their full name, others as written."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{name}: imports are absolute"
        assert node.module
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            yield full if full in modules() else node.module


@cache
def imports(name: str, *, at_start: bool = False) -> frozenset[str]:
    """What a module imports anywhere in it, or only when it is itself imported (not in functions, nor for type checking)."""
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
    pending: list[ast.AST] = list(tree.body)
    found = set()
    while pending:
        node = pending.pop()
        found.update(imported(node, name))
        if at_start and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if at_start and isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)
    return frozenset(found)


def room(name: str) -> str:
    """The room of a module: `sdbench.models.spec` is in `models`, `sdbench.scenes.training.vae` in `scenes.training`."""
    parts = name.split(".")
    if parts[0] != "sdbench":
        return parts[0]
    return "scenes.training" if parts[1:3] == ["scenes", "training"] else ".".join(parts[1:2])


def floor(of: str) -> int:
    return next(height for height, rooms in enumerate(FLOORS) if of.split(".", maxsplit=1)[0] in rooms)


def ours(names: frozenset[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] in ("sdbench", "distillation")}


def of_sdbench() -> list[str]:
    return sorted(name for name in modules() if name.split(".")[0] == "sdbench")


def reached(name: str) -> dict[str, str]:
    """Every module, ours or not, that importing `name` imports, with the module that does it."""
    by: dict[str, str] = {}
    pending = [name]
    while pending:
        here = pending.pop()
        packages = {".".join(here.split(".")[:depth]) for depth in range(1, here.count(".") + 1)}
        for other in (imports(here, at_start=True) | packages) - by.keys():
            by[other] = here
            if other in modules():
                pending.append(other)
    return by


def test_the_modules_are_found() -> None:
    assert {"sdbench", "sdbench.cli", "sdbench.models.spec", "sdbench.scenes.training.vae", "distillation.cli"} <= modules().keys()
    assert "sdbench.suites" in imports("sdbench.cli")
    assert "sdbench.suites" not in imports("sdbench.cli", at_start=True)
    assert "torch" in reached("sdbench.run.runner")


def test_every_module_has_its_floor() -> None:
    known = set().union(*FLOORS)
    assert {name for name in of_sdbench() if room(name).split(".")[0] not in known} == set()


@pytest.mark.parametrize("name", of_sdbench())
def test_a_module_imports_its_own_floor_and_those_below(name: str) -> None:
    above = {other for other in ours(imports(name)) if other.startswith("distillation") or floor(room(other)) > floor(room(name))}
    assert above == DOORS.get(name, set())
    assert not above & imports(name, at_start=True)


@pytest.mark.parametrize("name", [name for name in of_sdbench() if room(name) in ONLY])
def test_some_rooms_know_less(name: str) -> None:
    assert {room(other) for other in ours(imports(name))} <= ONLY[room(name)] | {room(name)}


def test_training_is_known_to_the_command_line_and_to_distillation_only() -> None:
    users = {room(name) for name in modules() if any(room(other) == "scenes.training" for other in ours(imports(name)))}
    assert users <= TRAINING_IS_FOR


def test_distillation_takes_only_the_rooms_it_may() -> None:
    taken = {room(other) for name in modules() if room(name) == "distillation" for other in ours(imports(name))}
    assert taken - {"distillation"} <= DISTILLATION_KNOWS


@pytest.mark.parametrize(
    "name", [*(name for name in of_sdbench() if {room(name), name.removeprefix("sdbench.")} & WITHOUT_TORCH), "distillation.cli"]
)
def test_readers_of_records_and_the_command_line_import_no_torch(name: str) -> None:
    assert {other: by for other, by in reached(name).items() if other in SLOW or other.split(".")[0] in SLOW} == {}


def test_no_module_imports_itself_in_a_circle() -> None:
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way, name])
        if name not in done:
            for other in ours(imports(name, at_start=True)):
                if other in modules():
                    visit(other, (*way, name))
            done.add(name)

    for name in modules():
        visit(name, ())
