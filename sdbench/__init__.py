"""sdbench: measure SDXL and its distilled students, and say whether a checkpoint may ship."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdbench.api import evaluate

__all__ = ["__version__", "evaluate"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`sdbench.evaluate`, imported on first use, so that `import sdbench` alone loads nothing."""
    if name == "evaluate":
        from sdbench.api import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Names for completion, including `evaluate`."""
    return sorted({*globals(), *__all__})
