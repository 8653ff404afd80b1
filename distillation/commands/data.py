"""`distillation data`: fetch, draw and inspect training images."""

import argparse
from contextlib import suppress
from pathlib import Path

from distillation.commands.options import MAX_UNDECODABLE, TEACHER, AddCommand, positive_int
from distillation.data.download import FetchRules
from sdbench.arguments import add_command, add_device, add_part, show
from sdbench.errors import UndecodableError
from sdbench.notes import progress

CAPTIONS_SHOWN = 5


def add_commands(add: AddCommand) -> None:
    """Add the command, its subcommands and their options."""
    actions = add("data", _data, "fetch training images from a list of links, let the teacher draw them, or inspect a source")
    subcommands = actions.add_subparsers(dest="action", required=True, metavar="ACTION")
    fetch = add_command(subcommands, "fetch", "fetch images from a list of links; a stopped run resumes")
    make = add_command(subcommands, "make", "let the teacher draw an image for each caption; a stopped run resumes")
    show_source = add_command(subcommands, "show", "print the number, digest, sizes and first captions of a source of images")
    fetch.add_argument("list", help="CSV, JSON-lines or parquet file, or Hub dataset, with links and captions")
    make.add_argument("prompts", type=Path, help="text file with one prompt per line; prompts become the captions")
    show_source.add_argument(
        "source",
        help="folder with metadata.jsonl, metadata.csv or a .txt beside each image; parquet files; webdataset tars (folder or glob); "
        "Hub dataset",
    )
    for command in (fetch, make):
        command.add_argument("--out", type=Path, required=True, help="folder for the images and their metadata.jsonl")
        command.add_argument("--n", type=positive_int, help="use only the first N rows (default: all)")
    for command in (fetch, show_source):
        command.add_argument("--caption-column", help="column with the captions (default: caption, text, prompt or clean_prompts)")
    _add_fetch_options(fetch)
    _add_make_options(make)


def _add_fetch_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--url-column", help="column with the links (default: url, image_url, link or Attachments)")
    command.add_argument(
        "--where", type=_parse_where, metavar="COLUMN=VALUE", help="use only rows with this value, such as upscaled=true (default: all)"
    )
    command.add_argument("--threads", type=positive_int, default=16, help="number of links to fetch at a time (default: %(default)s)")
    command.add_argument(
        "--min-px",
        type=positive_int,
        default=FetchRules.min_px,
        help="minimum length of an image's shorter side, in pixels (default: %(default)s)",
    )
    command.add_argument(
        "--timeout",
        type=positive_int,
        default=FetchRules.timeout_s,
        help="seconds to wait for a connection and for each part of a response (default: %(default)s)",
    )
    command.add_argument("--retry-dead", action="store_true", help="retry links that were dead in an earlier run")
    command.add_argument("--allow-private", action="store_true", help="also fetch from addresses that are not public, such as 127.0.0.1")


def _add_make_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--teacher", help=TEACHER)
    command.add_argument("--steps", type=positive_int, default=25, help="number of denoising steps (default: %(default)s)")
    command.add_argument("--guidance-scale", type=float, default=7.5, help="scale of classifier-free guidance (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="seed of the noise (default: %(default)s)")
    command.add_argument("--size-px", type=positive_int, help="width and height of the images, in pixels (default: the teacher's own)")
    command.add_argument(
        "--batch", type=positive_int, default=4, help="batch size: number of images generated at a time (default: %(default)s)"
    )
    command.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="floating-point type that the teacher computes in (default: float32 on a CPU, bfloat16 on a GPU, float16 on one that only "
        "emulates bfloat16)",
    )
    add_device(command)
    add_part(
        command,
        "draw only the K-th of N parts, for N parallel commands, such as one per GPU (chosen with --device); "
        "the last one completes the folder",
    )


def _parse_where(text: str) -> tuple[str, str]:
    """Parse `upscaled=true` as ("upscaled", "true")."""
    column, equals, value = text.partition("=")
    if not (column and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form COLUMN=VALUE, such as upscaled=true")
    return column, value


def _data(options: argparse.Namespace) -> int:
    show({"fetch": _fetch, "make": _make, "show": _show}[options.action](options))
    return 0


def _fetch(options: argparse.Namespace) -> object:
    from distillation.data.links import fetch_images

    rules = FetchRules(min_px=options.min_px, timeout_s=options.timeout, allow_private=options.allow_private)
    arguments = {name: getattr(options, name) for name in ("url_column", "caption_column", "where", "n", "threads", "retry_dead")}
    return fetch_images(options.list, options.out, rules, **arguments)


def _make(options: argparse.Namespace) -> object:
    from distillation.data.draw import draw_images, native_size_px
    from distillation.teacher import fetch_folder
    from sdbench.machine import choose_device
    from sdbench.settings import Sampling
    from sdbench.validation import validate

    device, teacher = choose_device(options.device), fetch_folder(options.teacher)
    settings = {name: getattr(options, name) for name in ("steps", "guidance_scale", "batch")}
    settings |= {"size_px": options.size_px or native_size_px(teacher), "dtype": options.dtype or _default_dtype(device)}
    sampling = validate(Sampling, settings, "sampling")
    part = options.part or (1, 1)
    return draw_images(options.prompts, teacher, options.out, sampling, n=options.n, seed=options.seed, device=device, part=part)


def _default_dtype(device: str) -> str:
    from distillation.accelerator import emulates_bfloat16

    if device == "cpu":
        return "float32"
    return "float16" if emulates_bfloat16(device) else "bfloat16"


def _show(options: argparse.Namespace) -> object:
    from distillation.data.images import open_images

    images, sizes = open_images(options.source, caption_column=options.caption_column), []
    for row in progress(range(len(images)), desc="sizes", unit="image"):
        with suppress(UndecodableError):
            sizes.append(images.size(row))
    sides = {"width": [size[0] for size in sizes], "height": [size[1] for size in sizes], "smaller side": [min(size) for size in sizes]}
    ranges = (f"{name} {min(values)}..{max(values)} px" for name, values in sides.items() if values)
    lines = [f"name: {images.name}", f"images: {len(images):,}", f"digest: {images.digest}", f"sizes: {', '.join(ranges) or 'none'}"]
    if undecodable := len(images) - len(sizes):
        limit = f"run leaves out up to {MAX_UNDECODABLE:.0%} of the images, or more with --max-undecodable"
        lines.append(f"cannot be decoded, by their headers, or without a caption: {undecodable:,}; {limit}")
    return "\n".join([*lines, "first captions:", *(f"  {caption}" for caption in images.captions[:CAPTIONS_SHOWN])])
