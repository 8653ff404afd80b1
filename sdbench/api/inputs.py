"""Models and suites, which every function takes by name or as objects."""

from collections.abc import Sequence
from pathlib import Path

from sdbench import suites
from sdbench.errors import UserError
from sdbench.models.resolve import resolve, with_distinct_names
from sdbench.models.spec import ModelSpec, path_of, with_name
from sdbench.notes import print_note
from sdbench.suites import Suite

NamedModel = str | Path | ModelSpec  # what `sdbench run --model` takes, or what `sdbench.models.resolve.resolve` returns
NamedSuite = str | Path | Suite  # a suite's name or the path of its file, or what `sdbench.suites.load` returns


def find_model(model: NamedModel, name: str | None = None) -> ModelSpec:
    """A model, by another name in tables where one is given.

    Raises:
        UserError: see `resolve`.
    """
    if isinstance(model, ModelSpec):
        return with_name(model, name) if name else model
    return resolve(as_text(model), name=name)


def as_text(what: str | Path) -> str:
    """What the command line would take; a `Path` in full, since its folder may be called like a model of the catalogue."""
    return str(path_of(str(what)).absolute()) if isinstance(what, Path) else what


def find_models(models: NamedModel | Sequence[NamedModel]) -> list[ModelSpec]:
    """One model or several, see `with_distinct_names`.

    Raises:
        UserError: there are none, or see `resolve` and `with_distinct_names`.
    """
    found = [find_model(model) for model in ([models] if isinstance(models, NamedModel) else models)]
    if not found:
        raise UserError("there is no model to measure; name at least one, such as 'scenes-vega'")
    return with_distinct_names(found)


def find_suite(suite: NamedSuite | None, model: ModelSpec) -> Suite:
    """A suite; for None the default of the model's family.

    Raises:
        UserError: see `suites.load`.
    """
    return suites.load_default(model.family) if suite is None else load_suite(suite)


def load_suite(suite: NamedSuite) -> Suite:
    """A suite, with a note where its file is a changed copy of a shipped one that kept its name.

    Raises:
        UserError: see `suites.load`.
    """
    if isinstance(suite, Suite):
        return suite
    found = suites.load(str(suite))
    if found.is_changed_copy:
        print_note(
            f"suite {suite} has the name and version of the shipped {found.name}@{found.version}, but other settings; give it a name of "
            "its own, or the gate weighs it like that one"
        )
    return found
