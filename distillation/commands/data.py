"""`distillation data`: fetch, draw and look at training pictures."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from distillation.commands.options import TEACHER, count
from distillation.data.download import Rules
from sdbench.arguments import add_command, show

if TYPE_CHECKING:
    from distillation.data.pictures import Pictures
    from sdbench.arguments import Parser

SHOWN = 5


def add(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command's own subcommands and their options."""
    actions = add_command(commands, "data", "training pictures: fetch a list of links, let the teacher draw, look at what is there")
    chosen = actions.add_subparsers(dest="action", required=True)
    fetching = add_command(chosen, "fetch", "fetch the pictures of a list of links; a run that was stopped continues")
    making = add_command(chosen, "make", "let the teacher draw a picture for each caption; a run that was stopped continues")
    showing = add_command(chosen, "show", "print number, digest, sizes and first captions of a source of pictures")
    fetching.add_argument("list", help="CSV, JSON-lines or parquet file, or Hub dataset, with links and captions")
    making.add_argument("prompts", type=Path, help="text file, a caption a line")
    showing.add_argument("what", help="folder with metadata.jsonl or .csv, parquet files, webdataset tars (folder or glob), or Hub dataset")
    for command in (fetching, making):
        command.add_argument("--out", type=Path, required=True, help="folder for the pictures and their metadata.jsonl")
        command.add_argument("--n", type=count, help="only the first rows (default: all)")
    for command in (fetching, showing):
        command.add_argument("--caption-column", help="where it is not called caption, text, prompt or clean_prompts")
    _add_fetching(fetching)
    _add_making(making)


def _add_fetching(command: argparse.ArgumentParser) -> None:
    command.add_argument("--url-column", help="where it is not called url, image_url, link or Attachments")
    command.add_argument(
        "--where", type=_where, metavar="COLUMN=VALUE", help="only rows that have this value, such as upscaled=true (default: all)"
    )
    command.add_argument("--threads", type=count, default=16, help="links at a time (default: %(default)s)")
    command.add_argument("--min-px", type=count, default=Rules.min_px, help="least smaller side of a picture (default: %(default)s)")
    command.add_argument(
        "--timeout", type=count, default=Rules.timeout_s, help="seconds to wait for each part of an answer (default: %(default)s)"
    )
    command.add_argument("--retry-dead", action="store_true", help="try again what was dead in an earlier run")
    command.add_argument("--allow-private", action="store_true", help="fetch from addresses that are not public, too")


def _add_making(command: argparse.ArgumentParser) -> None:
    command.add_argument("--teacher", help=TEACHER)
    command.add_argument("--steps", type=count, default=25, help="default: %(default)s")
    command.add_argument("--guidance", type=float, default=7.5, help="guidance scale (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    command.add_argument("--size-px", type=count, help="width and height (default: the teacher's own)")
    command.add_argument("--batch", type=count, default=4, help="pictures at a time (default: %(default)s)")
    command.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: float32 on the CPU, bfloat16 on a GPU")
    command.add_argument("--device", help="cpu, cuda or cuda:<index> (default: cuda where there is one)")
    command.add_argument(
        "--part", type=_part, default=(1, 1), metavar="K/N", help="only the K-th of N parts, for N commands at a time, such as one a GPU"
    )


def _part(text: str) -> tuple[int, int]:
    """`2/8` => (2, 8)."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no part K/N with K from 1 to N, such as 2/8")
    return int(found[1]), int(found[2])


def _where(text: str) -> tuple[str, str]:
    """`upscaled=true` => ("upscaled", "true")."""
    column, equals, value = text.partition("=")
    if not (column and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is no COLUMN=VALUE, such as upscaled=true")
    return column, value


def run(options: argparse.Namespace) -> None:
    """Do what the options say; the answer goes to stdout."""
    answer = {"fetch": _fetch, "make": _make, "show": _show}[options.action](options)
    show(answer)


def _fetch(options: argparse.Namespace) -> object:
    from distillation.data.links import fetch

    rules = Rules(min_px=options.min_px, timeout_s=options.timeout, allow_private=options.allow_private)
    chosen = {name: getattr(options, name) for name in ("url_column", "caption_column", "where", "n", "threads", "retry_dead")}
    return fetch(options.list, options.out, rules, **chosen)


def _make(options: argparse.Namespace) -> object:
    from distillation.data.draw import draw
    from distillation.teacher import place
    from sdbench.assets.sources import METADATA

    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    chosen = {name: getattr(options, name) for name in ("steps", "dtype", "batch", "size_px", "n", "seed", "device", "part")}
    out = draw(options.prompts, place(options.teacher), options.out, guidance_scale=options.guidance, **chosen)
    return out if (out / METADATA[0]).exists() else f"{out}, without metadata.jsonl yet: the other parts are not done"


def _show(options: argparse.Namespace) -> object:
    from distillation.data.pictures import open_pictures

    return describe(open_pictures(options.what, caption_column=options.caption_column))


def describe(pictures: "Pictures") -> str:
    """Name, number, digest, range of sizes and first captions.

    Raises:
        UserError: a picture's header cannot be read.
    """
    from tqdm import tqdm

    sizes = [pictures.size(row) for row in tqdm(range(len(pictures)), desc="sizes", unit="image", mininterval=1)]
    width, height, side = ([one[0] for one in sizes], [one[1] for one in sizes], [min(one) for one in sizes])
    ranges = (f"{name} {min(values)}..{max(values)} px" for name, values in (("width", width), ("height", height), ("smaller side", side)))
    lines = [f"name: {pictures.name}", f"pictures: {len(pictures):,}", f"digest: {pictures.digest}", f"sizes: {', '.join(ranges)}"]
    return "\n".join([*lines, "first captions:", *(f"  {caption}" for caption in pictures.captions[:SHOWN])])
