"""Where suite files are: in `./suites`, else in the package."""

from pathlib import Path

POLICY = "gate.toml"
_LOCAL = Path("suites")
_INSTALLED, _CHECKED_OUT = Path(__file__).parents[1] / "_suites", Path(__file__).parents[2] / "suites"
SHIPPED = _INSTALLED if _INSTALLED.is_dir() else _CHECKED_OUT  # the folder of the package's own files


def find(name: str) -> Path:
    """The path of a suite file, the policy, or another file beside them: in `./suites` where it exists there, else in the package."""
    own = _LOCAL / name
    return own if own.exists() else SHIPPED / name


def names() -> list[str]:
    """The names of all suites, in `./suites` and in the package."""
    return sorted({path.stem for folder in (_LOCAL, SHIPPED) for path in folder.glob("*.toml") if path.name != POLICY})


def base_name(name: str) -> str:
    """The name of the suite that `<name>-custom`, `<name>-sequential` or `<name>-custom-sequential` was made from."""
    return name.removesuffix("-sequential").removesuffix("-custom")
