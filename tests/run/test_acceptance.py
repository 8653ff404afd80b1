"""A run reproduces MLPerf's reference only with the same inputs; otherwise it reports what differs."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sdbench import suites
from sdbench.encoders.catalogue import ENCODERS
from sdbench.metrics.frechet import Gaussian
from sdbench.records import Value
from sdbench.reference.cards import save
from sdbench.run.acceptance import add_verdicts
from sdbench.settings import Sampling
from sdbench.suites import Accept, Noise, Prompts, Suite

ROOT = Path(__file__).parents[2]
PROMPTS = ["one", "two"]
NOTHING = Value(name="fid.mlperf", kind="set", direction="lower", unit="distance", state="missing", reason="reference: ...")


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """A protocol like MLPerf's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    torch.save(torch.zeros(4, 2, 2), tmp_path / "latents.pt")
    accept = Accept(
        name="MLPerf",
        source="their files",
        prompts=hashlib.sha256(json.dumps(PROMPTS).encode()).hexdigest(),
        noise=hashlib.sha256((tmp_path / "latents.pt").read_bytes()).hexdigest(),
        statistics="a" * 40,
        ranges={"fid.mlperf": (23.01085758, 23.95007626), "clip_score.mlperf": (31.68631873, 31.81331801)},
    )
    return Suite(
        name="like",
        version=1,
        family="sdxl",
        description="",
        sampling=Sampling(steps=1, guidance_scale=1, size_px=64, dtype="float32", batch=1),
        prompts=Prompts(source="file", file="prompts.txt", n=2),
        noise=Noise(kind="fixed", file=str(tmp_path / "latents.pt")),
        accept=accept,
    )


def make_values(fid: float = 23.5, clip: float = 31.75, reference: str = "theirs") -> list[Value]:
    return [
        Value(name="fid.mlperf", kind="set", direction="lower", unit="distance", value=fid, n=2, reference=reference, note="descriptive"),
        Value(name="clip_score.mlperf", kind="score", direction="higher", unit="100 cos", value=clip, n=2),
        Value(name="pickscore.v1", kind="score", direction="higher", unit="logit", value=20, n=2),
    ]


def import_reference(runs: Path, git: str = "a" * 40, digest: str = "theirs") -> None:
    encoder, data = replace(ENCODERS["inception.mlperf"], name=digest), {"source": "s", "sha256": "0", "git": git}
    save("val", encoder, digest, data, Gaussian(np.zeros(1), np.eye(1), 5), None, runs)


def notes(suite: Suite, runs: Path, found: list[Value] | None = None) -> dict[str, str]:
    return {value.name: value.note for value in add_verdicts(found or make_values(), suite, runs)}


def test_same_prompts_latent_and_statistics_reproduce_the_reference(suite: Suite, tmp_path: Path) -> None:
    import_reference(tmp_path)
    assert notes(suite, tmp_path) == {
        "fid.mlperf": "descriptive; reproduces the reference: within 23.01085758..23.95007626",
        "clip_score.mlperf": "reproduces the reference: within 31.68631873..31.81331801",
        "pickscore.v1": "",
    }
    ends = notes(suite, tmp_path, make_values(fid=23.95007626, clip=31.68631873))
    assert all("reproduces" in ends[name] for name in ("fid.mlperf", "clip_score.mlperf"))
    outside = notes(suite, tmp_path, make_values(fid=23.96, clip=31.6))
    assert outside["fid.mlperf"] == "descriptive; MLPerf's protocol, not its result: outside 23.01085758..23.95007626"
    assert outside["clip_score.mlperf"] == "MLPerf's protocol, not its result: outside 31.68631873..31.81331801"


def test_differences_are_named_and_nothing_counts_as_reproduced(suite: Suite, tmp_path: Path) -> None:
    import_reference(tmp_path)
    import_reference(tmp_path, git="b" * 40, digest="other")
    torch.save(torch.ones(4, 2, 2), tmp_path / "other.pt")
    changed = {
        "prompts": (suite.model_copy(update={"prompts": Prompts(source="file", file="prompts.txt", n=1)}), make_values()),
        "latent": (suite.model_copy(update={"noise": Noise(kind="fixed", file=str(tmp_path / "other.pt"))}), make_values()),
        "settings": (suite.model_copy(update={"name": "like-custom"}), make_values()),
        "statistics": (suite, make_values(reference="other")),
        "latent, statistics": (suite.model_copy(update={"noise": Noise(kind="fixed")}), make_values(reference="nobody's")),
    }
    for what, (own, found) in changed.items():
        assert notes(own, tmp_path, found)["clip_score.mlperf"] == f"MLPerf-like: other {what}; within 31.68631873..31.81331801"
    assert notes(suite, tmp_path, make_values()[1:2])["clip_score.mlperf"].startswith("MLPerf-like: other statistics; "), "none were used"
    assert notes(suite, tmp_path, [NOTHING, make_values()[1]]) == {
        "fid.mlperf": "",
        "clip_score.mlperf": "MLPerf-like: other statistics; within 31.68631873..31.81331801",
    }


def test_suite_without_accepted_ranges_adds_no_notes(suite: Suite, tmp_path: Path) -> None:
    assert add_verdicts(make_values(), suite.model_copy(update={"accept": None}), tmp_path) == make_values()


def test_accepted_ranges_do_not_change_the_suite_id(suite: Suite) -> None:
    assert suite.model_copy(update={"accept": None}).id == suite.id


def test_shipped_protocol_matches_mlperf(monkeypatch: pytest.MonkeyPatch) -> None:
    """As mlcommons/inference states it: text_to_image/backend_pytorch.py, docs/index.md and submission_checker/constants.py."""
    monkeypatch.chdir(ROOT)
    shipped = suites.load("mlperf-sdxl")
    sampling, accept = shipped.sampling, shipped.accept
    assert accept is not None
    assert (sampling.steps, sampling.guidance_scale, sampling.scheduler, sampling.size_px) == (20, 8.0, "euler", 1024)
    assert sampling.negative_prompt == "normal quality, low quality, worst quality, low res, blurry, nsfw, nude"
    assert shipped.metrics == {"sdxl": ("fid.mlperf", "clip_score.mlperf")}
    assert (shipped.prompts.n, shipped.prompts.digest) == (5000, accept.prompts)
    assert (shipped.noise.kind, shipped.noise.seed, shipped.noise.file) == ("fixed", 0, "asset:mlperf-latents")
    fid, clip = 23.48046692, 31.74981837  # the fp32 reference's
    assert accept.ranges["fid.mlperf"] == pytest.approx((fid * 0.98, fid * 1.02), abs=5e-9)
    assert accept.ranges["clip_score.mlperf"] == pytest.approx((clip * 0.998, clip * 1.002), abs=5e-9)
