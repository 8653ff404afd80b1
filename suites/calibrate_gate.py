"""Measure how often the gate errs, on images of embedded Vega under several noise seeds and on faults injected into it.

    python suites/calibrate_gate.py pool [--work DIR] [--student FAULT=FOLDER ...]
    python suites/calibrate_gate.py judge [--draws N]

`pool` generates the images (a killed run continues where it was) and stores their scores and features in
`results/calibration/pool.parquet`. `judge` draws prompts from it with replacement, as many as the suite has, builds two records from each
draw, and runs the gate on them. A question that was already answered, with the same pool, policy, records and code, is not asked
again. It writes `results/calibration/gate.json` and `gate.md`.

Latency and memory have no pool. Their rounds come from the committed records of suite `quality`, whose models took turns, each divided by
its record's median. A round of both sides is drawn as two models of one turn. So they show what one run on one machine shows.

The committed pool has two students that `distillation run` made with a fault: "half of the training" by `--steps 1200`, "the middle's
tap lost" by the recipe without `mid_block` among its taps.
"""

import argparse
import ast
import hashlib
import json
from pathlib import Path
from typing import Any

import calibration_questions
import calibration_sampler
from calibration_pool import FOLDER, POOL, make
from calibration_questions import questions, unpaired_ratios
from calibration_sampler import SUITE, Sampler
from scipy.stats import binomtest

from sdbench import records, tables
from sdbench.disk import write_json
from sdbench.gate import judging, looks, pairing
from sdbench.metrics import frechet
from sdbench.run import until_verdict
from sdbench.stats import decisions, intervals, sequential, student_t

OF_GATE = (decisions, pairing, judging, looks, sequential, intervals, student_t, frechet, until_verdict)
CODE = [Path(str(module.__file__)) for module in (calibration_sampler, calibration_questions, *OF_GATE)]


def digest_of(sampler: Sampler, draws: int) -> str:
    """Digest of all that answers depend on: draws, pool, the suite's part of the policy, records, and the code that draws and judges."""
    policy_json = sampler.policy.model_copy(update={"suites": {SUITE: sampler.rules}}).model_dump_json()
    inputs = [str(draws), policy_json, *map(records.digest_of, sampler.folders), hashlib.sha256(POOL.read_bytes()).hexdigest()]
    return hashlib.sha256("\n".join([*inputs, *map(_code_of, CODE)]).encode()).hexdigest()[:16]


def _code_of(path: Path) -> str:
    """A module's syntax tree as JSON, without comments and docstrings, which decide no answer."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return json.dumps(_plain(tree))


def _plain(node: object) -> object:
    """A part of a syntax tree as lists and text, without empty fields, which differ between versions of Python."""
    if isinstance(node, ast.AST):
        return [type(node).__name__, [[name, _plain(field)] for name, field in ast.iter_fields(node) if field not in (None, [])]]
    return [_plain(each) for each in node] if isinstance(node, list) else repr(node)


def ask_all(sampler: Sampler, draws: int) -> None:
    """Ask every question that is not answered yet, and write `gate.json` and `gate.md`."""
    digest = digest_of(sampler, draws)
    path = FOLDER / "gate.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    answers = stored["answers"] if stored.get("digest") == digest else {}
    for question in questions(sampler):
        if question.name in answers:
            continue
        answers[question.name] = answer = question.answer(draws)
        margins = {name: rule.margin for name, rule in sampler.rules.items()}
        write_json(path, {"digest": digest, "margins": margins, "unpaired": unpaired_ratios(sampler), "answers": answers})
        print(question.name, answer["verdicts"], f"{answer['share_of_prompts']:.2f}", flush=True)
    (FOLDER / "gate.md").write_text(table(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")


def table(content: dict[str, Any]) -> str:
    """The answers as Markdown tables; shares of draws with 95 % intervals."""
    header = ("what the candidate is", "worst size in margins", "pass", "regressed", "inconclusive", "share of the prompts")
    rows = []
    for name, answer in content["answers"].items():
        found = [answer["verdicts"].get(verdict, 0) for verdict in ("pass", "regressed", "inconclusive")]
        sizes = answer["size_in_margins"] or {}
        worst = max(sizes, key=sizes.__getitem__) if sizes else ""
        cells = [_share(number, answer["draws"]) for number in found]
        rows.append((name, f"{sizes[worst]:.2f} ({worst})" if worst else "", *cells, f"{answer['share_of_prompts']:.2f}"))
    ratio_header = ("pairs", *next(iter(content["unpaired"].values())))
    ratios = [
        (arm, *("identical" if value == float("inf") else f"{value:.1f}" for value in found.values()))
        for arm, found in content["unpaired"].items()
    ]
    return (
        "<!-- written by `python suites/calibrate_gate.py judge` -->\n\n# How often the gate errs\n\n"
        "From 10,240 images of embedded Vega and of six faults, of which draws of 512 prompts go through the gate. A size is the true\n"
        "loss over the margin, of the metric in brackets; below 0 is better than the baseline. The share of the prompts is what a run\n"
        "that stops when sure needs. Rates without an interval are computed, not drawn. The rules:\n"
        "[docs/methods.md](../../docs/methods.md#measured-errors).\n\n"
        f"{tables.markdown(tables.Grid(header, tuple(rows)))}\n\n"
        "Prompts that an unpaired test of the same images needs, over those of the paired one:\n\n"
        f"{tables.markdown(tables.Grid(ratio_header, tuple(ratios)))}\n"
    )


def _share(number: float, draws: int) -> str:
    if not draws:
        return f"{number:.4f} (exact)"
    share = binomtest(int(number), draws).proportion_ci(method="wilson")
    return tables.format_estimate(number / draws, share.low, share.high)


def main() -> None:
    """Run the step that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("pool", "judge"))
    parser.add_argument("--work", type=Path, default=Path("results/runs/calibration"))
    parser.add_argument(
        "--student",
        action="append",
        default=[],
        metavar="FAULT=FOLDER",
        help="folder of a faulty UNet, and the name of its fault; repeatable",
    )
    parser.add_argument("--draws", type=int, default=1000)
    arguments = parser.parse_args()
    if arguments.step == "pool":
        make(arguments.work, {fault: Path(folder) for fault, _, folder in (one.partition("=") for one in arguments.student)})
    else:
        ask_all(Sampler(arguments.work), arguments.draws)


if __name__ == "__main__":
    main()
