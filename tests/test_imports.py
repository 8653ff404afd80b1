"""Imports go one way: a module may import packages of its own row in CONTRIBUTING.md and of the rows above."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Packages that may import less than the rows above theirs. `scenes.training` trains weights with `models` and the rest of `scenes`; only
# the command line and `distillation` may import it.
ALLOWED = {
    "metrics": {"arrays"},
    "stats": {"arrays"},
    "torchmetrics": {"arrays", "metrics"},
    "records": {"arrays", "errors", "validation"},
    "scenes": {"arrays", "disk", "errors"},
    "scenes.training": {"arrays", "disk", "errors", "models", "notes", "scenes", "training"},
    "tables": {"records"},
    "gate": {"arrays", "disk", "errors", "models", "records", "stats", "suites", "tables", "validation"},
    "leaderboard": {"arrays", "disk", "errors", "image_files", "models", "records", "stats", "tables", "validation"},
    "report": {"disk", "errors", "gate", "image_files", "leaderboard", "records", "stats", "tables"},
}
TRAINING_USERS = {"scenes.training", "commands", "distillation"}
# `assets` opens data sets and fetches teachers; `settings` and `suites` have the types of the arguments of `generate`; `machine` gives
# the commit of a checkout.
DISTILLATION_MAY_IMPORT = {
    "",  # the version
    "arguments",
    "arrays",
    "assets",
    "disk",
    "errors",
    "generate",
    "image_files",
    "machine",
    "models",
    "notes",
    "probes",
    "scenes",
    "scenes.training",
    "settings",
    "stats",
    "store",
    "suites",
    "training",
    "validation",
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


def imported_names(node: ast.AST, name: str) -> Iterator[str]:
    """Names in an import statement: own modules by their full name, others as written."""
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
    """All imports in a module; `at_start`: only those made when it is imported, so none in functions or for type checking."""
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
    pending: list[ast.AST] = list(tree.body)
    found = set[str]()
    while pending:
        node = pending.pop()
        found.update(imported_names(node, name))
        if at_start and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if at_start and isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)
    return frozenset(found)


def package(name: str) -> str:
    """The package of a module: `sdbench.models.spec` is in `models`, `sdbench.scenes.training.vae` in `scenes.training`."""
    parts = name.split(".")
    if parts[0] != "sdbench":
        return parts[0]
    return "scenes.training" if parts[1:3] == ["scenes", "training"] else ".".join(parts[1:2])


def own_modules(names: frozenset[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] in ("sdbench", "distillation")}


def sdbench_modules() -> list[str]:
    return sorted(name for name in modules() if name.split(".")[0] == "sdbench")


def import_closure(name: str) -> dict[str, str]:
    """All modules that importing `name` imports: name -> the module that imports it."""
    importers: dict[str, str] = {}
    pending = [name]
    while pending:
        module = pending.pop()
        packages = {".".join(module.split(".")[:depth]) for depth in range(1, module.count(".") + 1)}
        for other in (imports(module, at_start=True) | packages) - importers.keys():
            importers[other] = module
            if other in modules():
                pending.append(other)
    return importers


def test_rows_of_contributing_name_every_package_once_and_in_the_order_of_their_imports() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("| module or package |")[2].partition("\n\n")[0]
    rows = [re.findall(r"`(\w+)(?:/|\.py)`", line.split("|")[1]) for line in table.splitlines()[2:]]
    row_of = {name: index for index, names in enumerate(rows) for name in names}
    known = {package(name).split(".")[0] for name in modules()} - {"", "__main__"}
    assert sorted(name for names in rows for name in names) == sorted(known)
    row_of |= {"": -1, "__main__": row_of["cli"]}  # "" is sdbench itself, which has the version and may load nothing before it is used
    later = {
        f"{name} imports {other}"
        for name in modules()
        if (own := package(name)) != "scenes.training"
        for other in own_modules(imports(name, at_start=own == ""))
        if row_of[package(other).split(".")[0]] > row_of[own]
    }
    assert later == set()


def test_modules_and_their_imports_are_found() -> None:
    assert {"sdbench", "sdbench.cli", "sdbench.models.spec", "sdbench.scenes.training.vae", "distillation.cli"} <= modules().keys()
    assert "sdbench.suites" in imports("sdbench.commands.listing")
    assert "sdbench.suites" not in imports("sdbench.commands.listing", at_start=True)
    assert "torch" in import_closure("sdbench.run.runner")


@pytest.mark.parametrize("name", [name for name in sdbench_modules() if package(name) in ALLOWED])
def test_restricted_packages_import_only_what_is_allowed(name: str) -> None:
    assert {package(other) for other in own_modules(imports(name))} <= ALLOWED[package(name)] | {package(name)}


def test_only_the_command_line_and_distillation_import_training() -> None:
    users = {package(name) for name in modules() if any(package(other) == "scenes.training" for other in own_modules(imports(name)))}
    assert users <= TRAINING_USERS


def test_distillation_imports_only_allowed_packages() -> None:
    packages = {package(other) for name in modules() if package(name) == "distillation" for other in own_modules(imports(name))}
    assert packages - {"distillation"} <= DISTILLATION_MAY_IMPORT


@pytest.mark.parametrize(
    "name", [*(name for name in sdbench_modules() if {package(name), name.removeprefix("sdbench.")} & WITHOUT_TORCH), "distillation.cli"]
)
def test_record_readers_and_command_line_import_no_torch(name: str) -> None:
    assert {other: importer for other, importer in import_closure(name).items() if other in SLOW or other.split(".")[0] in SLOW} == {}


def test_describing_a_recipe_imports_no_datasets() -> None:
    assert "datasets" not in import_closure("distillation.describe")  # which takes a second or two


@pytest.mark.parametrize("name", sorted(modules()))
def test_modules_are_importable_without_posix(name: str) -> None:
    assert not imports(name, at_start=True) & {"fcntl", "grp", "posix", "pwd", "resource", "termios"}


def test_there_are_no_import_cycles() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for other in own_modules(imports(name, at_start=True)):
                if other in modules():
                    visit(other, (*path, name))
            done.add(name)

    for name in modules():
        visit(name, ())
