"""The stock classes of a pipeline and its parts, typed `Any`: strict type checking cannot follow the libraries' annotations."""

from importlib import import_module
from typing import Any

import diffusers
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from sdbench.models.files import PART_CLASSES, PIPELINE_CLASS, STEMS

PIPELINE: Any = getattr(diffusers, PIPELINE_CLASS)
CLASSES: dict[str, Any] = {  # of the parts that have weights
    part: getattr(import_module(library), name) for part, (library, name) in PART_CLASSES.items() if part in STEMS
}


def silence_libraries() -> None:
    """Turn off the progress bars and warnings of diffusers and transformers; `checks` makes errors of what they warn about."""
    libraries: tuple[Any, ...] = (diffusers_logging, transformers_logging)
    for library in libraries:
        library.disable_progress_bar()
        library.set_verbosity_error()
