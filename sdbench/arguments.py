"""How the command lines read their words."""

import argparse
from typing import Any


class Parser(argparse.ArgumentParser):
    """A parser whose options are written out: by argparse's own rule `--base` would be read as `--baseline` where there is no `--base`.

    Its subcommands are parsers of this class too.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options, allow_abbrev=False)
