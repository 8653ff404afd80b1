"""Set metrics as protocols: the encoder and reference of each, its direction, and its reason where there is no value."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from subjects import make_subject
from synthetic_images import noise, photograph

from sdbench.arrays import F32, F64, U8
from sdbench.encoders import inference
from sdbench.encoders.catalogue import ENCODERS, Encoder
from sdbench.errors import MissingError
from sdbench.metrics import frechet_infinity, prdc
from sdbench.metrics.cmmd import cmmd
from sdbench.metrics.frechet import frechet_distance, gaussian
from sdbench.metrics.kid import kid
from sdbench.protocols import base, sets
from sdbench.protocols.base import Subject
from sdbench.records import Value
from sdbench.reference import cards
from sdbench.reference.cards import Reference
from sdbench.score import score

FRECHET = {
    "fid.clean": "inception.clean",
    "fid.tf1": "inception.tf1",
    "fid.mlperf": "inception.mlperf",
    "fid.torchmetrics": "inception.torchmetrics",
    "fd.dinov2": "dinov2.vit-l-14",
}
PRDC = tuple(f"prdc.{name}" for name in ("precision", "recall", "density", "coverage"))
NAMES = ("fid.clean", "fid_infinity.clean", *list(FRECHET)[1:], "kid", "cmmd", *PRDC)
REAL = np.stack([photograph(seed, 32, 32) for seed in range(100, 160)])
SAME = np.stack([photograph(seed, 32, 32) for seed in range(60)])


def fake_features(name: str) -> Callable[[U8], F32]:
    """Fake features that differ by encoder, N x 15: means of an image's quarters and its contrasts, mixed; CLIP's are of length 1."""
    mix = np.random.default_rng(list(ENCODERS).index(name)).normal(size=(15, 15)) + 3 * np.eye(15)

    def features(images: U8) -> F32:
        quarters = images.reshape(len(images), 2, 16, 2, 16, 3).mean(axis=(2, 4)).reshape(len(images), 12) / 128 - 1
        contrasts = np.diff(images.astype(float), axis=1).std(axis=(1, 2)) / 64
        rows = np.concatenate([quarters, contrasts], axis=1) @ mix
        return np.asarray(rows / (np.linalg.norm(rows, axis=1, keepdims=True) if name.startswith("clip") else 1), np.float32)

    return features


@pytest.fixture(autouse=True)
def _fake_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    encoders = {name: Encoder(name, f"{name}.fake".__str__, fake_features(name), 15, 16) for name in ENCODERS}

    def find(name: str | None, encoder: Encoder, _: Path) -> Reference:
        if name != "real":
            raise MissingError(f"reference: {name}")
        features = encoder.features(REAL)
        return Reference(f"digest of {encoder.name}", gaussian(features), features)

    monkeypatch.setattr(sets, "ENCODERS", encoders)
    monkeypatch.setattr(cards, "find", find)


def set_subject(folder: Path, images: U8 = SAME, **changes: Any) -> Subject:
    return make_subject(folder, images, **{"reference": "real", **changes})


def values(folder: Path, images: U8 = SAME, **changes: Any) -> dict[str, Value]:
    return {value.name: value for value in score(set_subject(folder, images, **changes), NAMES)[0]}


def test_every_protocol_has_a_value_with_interval_and_influence(tmp_path: Path) -> None:
    found, scores = score(set_subject(tmp_path), NAMES)
    assert [value.name for value in found] == list(NAMES)
    for value in found:
        assert value.state == "ok", value
        assert value.n == 60
        assert value.value is not None
        assert value.low is not None
        assert value.high is not None
        assert value.low <= value.value <= value.high
        assert value.kind == "set"
        column = scores.columns[f"{value.name}:influence"]
        assert column.shape == (60,)
        assert column.mean() == pytest.approx(0, abs=1e-9)
    assert {value.direction for value in found if value.name in PRDC} == {"higher"}
    assert {value.direction for value in found if value.name not in PRDC} == {"lower"}
    assert all(value.high <= 1 for value in found if value.unit == "share" and value.high)


def test_each_protocol_uses_the_features_of_its_own_encoder(tmp_path: Path) -> None:
    found = values(tmp_path)
    for name, encoder in FRECHET.items():
        own, real = (fake_features(encoder)(images) for images in (SAME, REAL))
        assert found[name].value == pytest.approx(frechet_distance(gaussian(own), gaussian(real))), name
        assert found[name].reference == f"digest of {encoder}"
    own, real = (fake_features("inception.clean")(images) for images in (SAME, REAL))
    assert found["kid"].value == pytest.approx(kid(own, real)[0])
    assert {found[name].reference for name in ("fid_infinity.clean", "kid", *PRDC)} == {"digest of inception.clean"}
    assert [found[name].value for name in PRDC] == pytest.approx([value for value, _ in prdc.prdc(own, real).values()])
    assert found["cmmd"].value == pytest.approx(cmmd(*(fake_features("clip.vit-l-14-336")(images) for images in (SAME, REAL)))[0])
    assert found["cmmd"].reference == "digest of clip.vit-l-14-336"
    assert len({found[name].value for name in FRECHET}) == len(FRECHET)


def test_interval_of_an_extrapolation_reaches_to_that_of_a_parabola(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances that lie on a parabola in 1 / n, to which no image adds more than another: the end of the interval is the truth."""
    monkeypatch.setattr(frechet_infinity, "frechet", lambda x, _: (3 + 50 / len(x) + 700 / len(x) ** 2, np.zeros(len(x))))
    (found,), _ = score(set_subject(tmp_path), ["fid_infinity.clean"])
    assert (found.value, found.high) == pytest.approx((3 - 2 * 700 / 60**2, 3))


def test_moments_are_noted_as_poor_below_five_images_per_dimension() -> None:
    assert base.small_sample_note(3, 15) == base.small_sample_note(3, 15, 15) == ""
    assert base.small_sample_note(3, 14) == "descriptive only, since n = 14 < 5 d = 15 for d features"
    assert base.small_sample_note(3, 15, 14) == "descriptive only, since the reference's n = 14 < 5 d = 15 for d features"


def test_reference_of_few_images_is_noted_and_too_small_for_prdc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = cards.find

    def find_few(*arguments: Any) -> Reference:
        features = find(*arguments).features
        assert features is not None
        return Reference("few", gaussian(features[:6]), features[:6])

    monkeypatch.setattr(cards, "find", find_few)
    found = values(tmp_path)
    few = "the reference's n = 6 < 5 d = 75 for d features"
    assert {found[name].note for name in FRECHET} == {f"descriptive only, since n = 60 and {few}"}
    assert found["fid_infinity.clean"].note == f"extrapolated to unlimited images; descriptive only, since {few}"
    for name in PRDC:
        assert found[name].state == "missing"
        assert found[name].reason == "reference: 'real' holds 6 images, but this metric needs at least 7; build one from more"
    assert {value.state for name, value in found.items() if name not in PRDC} == {"ok"}


def test_every_set_metric_is_tested_here() -> None:
    assert {protocol.name for protocol in sets.PROTOCOLS} == {*NAMES, "fd.scenes"}


@pytest.mark.parametrize(
    ("kind", "insensitive"),
    [("collapsed", {"prdc.precision", "prdc.density"}), ("noise", set()), ("black", set()), ("inverted", {*PRDC})],
)
def test_every_corruption_is_worse_in_every_protocol_sensitive_to_it(kind: str, insensitive: set[str], tmp_path: Path) -> None:
    images = {
        "collapsed": np.repeat(REAL[:1], 60, axis=0),
        "noise": np.stack([noise(seed, 32, 32) for seed in range(60)]),
        "black": SAME * np.uint8(0),
        "inverted": 255 - (SAME // 2),
    }[kind]
    good, bad = values(tmp_path / "good"), values(tmp_path / "bad", images)
    for name in set(NAMES) - insensitive:
        better, worse = good[name].value, bad[name].value
        assert better is not None
        assert worse is not None
        assert (worse < better - 0.1) if good[name].direction == "higher" else (worse > 2 * abs(better)), name


def test_set_metrics_of_a_suite_without_a_reference_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Subject, "features", lambda *_: pytest.fail("features were computed for nothing"))
    found = values(tmp_path, reference=None)
    assert {value.state for value in found.values()} == {"missing"}
    assert all(value.reason.startswith("reference: ") for value in found.values())


def test_published_moments_support_only_frechet_distances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = cards.find
    monkeypatch.setattr(cards, "find", lambda *arguments: replace(find(*arguments), features=None))
    found = values(tmp_path)
    assert {name for name, value in found.items() if value.state == "ok"} == {*FRECHET, "fid_infinity.clean"}
    for name in ("kid", "cmmd", *PRDC):
        assert found[name].state == "missing"
        assert found[name].reason.startswith("reference: 'real' holds only published moments")


@pytest.mark.parametrize(
    ("n", "lacking"),
    [(1, set(NAMES)), (2, {"fid_infinity.clean", *PRDC}), (6, {"fid_infinity.clean", *PRDC}), (7, {"fid_infinity.clean"}), (38, set())],
)
def test_set_metrics_do_not_apply_to_too_few_images(n: int, lacking: set[str], tmp_path: Path) -> None:
    found = values(tmp_path, SAME[:n])
    assert {name for name, value in found.items() if value.state == "not_applicable"} == lacking
    least = dict.fromkeys(NAMES, 2) | dict.fromkeys(PRDC, 7) | {"fid_infinity.clean": 38}
    assert all(f"at least {least[name]} images, found {n}" in found[name].reason for name in lacking)
    assert {value.state for name, value in found.items() if name not in lacking} <= {"ok"}


def test_prdc_is_computed_once_for_its_four_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, compute = [], prdc.prdc

    def counted(generated: F32, real: F32) -> dict[str, tuple[float, F64]]:
        calls.append(1)
        return compute(generated, real)

    monkeypatch.setattr(prdc, "prdc", counted)
    values(tmp_path)
    assert len(calls) == 1


def test_features_are_computed_in_blocks_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "BLOCK", 7)
    seen = []

    def encode(images: U8) -> F32:
        seen.append(len(images))
        return fake_features("inception.clean")(images)

    features = set_subject(tmp_path).features("net", encode)
    assert seen == [7] * 8 + [4]
    np.testing.assert_allclose(features, fake_features("inception.clean")(SAME), rtol=1e-5)


def test_features_of_other_versions_or_another_device_are_computed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def encode(images: U8) -> F32:
        seen.append(len(images))
        return fake_features("inception.clean")(images)

    packages = ("numpy", "open-clip-torch", "pillow", "torch", "torchvision", "transformers")
    for changed in (None, None, *packages):
        monkeypatch.setattr(inference, "version", lambda name, changed=changed: "2" if name == changed else "1")
        set_subject(tmp_path).features("net", encode)
    assert len(seen) == 1 + len(packages)
    monkeypatch.setattr(inference, "__version__", "99")
    set_subject(tmp_path).features("net", encode)
    monkeypatch.setattr(inference, "device", lambda: torch.device("cuda", 1))
    set_subject(tmp_path).features("net", encode)
    assert len(seen) == 3 + len(packages)


def test_share_that_no_single_image_changes_has_no_interval(tmp_path: Path) -> None:
    found = values(tmp_path, SAME * np.uint8(0))
    assert found["prdc.recall"].value == 0
    assert (found["prdc.recall"].low, found["prdc.recall"].high) == (None, None)
    assert "no interval" in found["prdc.recall"].note


@pytest.mark.parametrize("images", [SAME, SAME * np.uint8(0)])
def test_precision_has_the_interval_of_a_share_also_where_it_is_zero(tmp_path: Path, images: U8) -> None:
    found = values(tmp_path, images)["prdc.precision"]
    assert found.value is not None
    expected = binomtest(round(60 * found.value), 60).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_intervals_count_prompts_and_not_their_images(tmp_path: Path) -> None:
    """Four equal images of each prompt tell no more than one does: intervals of the same width, not of half of it."""
    ids = [f"{prompt:03d}" for _ in range(4) for prompt in range(60)]
    several = {"prompt_ids": ids, "samples": np.repeat(range(4), 60).tolist()}
    one, four = values(tmp_path, SAME), values(tmp_path, np.tile(SAME, (4, 1, 1, 1)), **several)
    for name in ("fid.clean", "fd.dinov2", "kid", "cmmd", "prdc.precision", "prdc.density"):
        widths = []
        for found in (one[name], four[name]):
            assert found.n == 60
            assert found.low is not None
            assert found.high is not None
            widths.append(found.high - found.low)
        assert widths[1] == pytest.approx(widths[0], rel=0.1), name
    for name in ("kid", "cmmd", "prdc.precision"):
        assert four[name].value == pytest.approx(one[name].value), "nor are they nearer to each other than those of two prompts"
    for name in ("prdc.recall", "prdc.coverage"):
        assert (four[name].n, four[name].low, four[name].high) == (60, None, None)
        assert "leaving out single images does not show" in four[name].note
    assert (one["fid_infinity.clean"].state, four["fid_infinity.clean"].state) == ("ok", "not_applicable")
    assert "several images of a prompt are not" in four["fid_infinity.clean"].reason


def test_images_of_a_single_prompt_have_no_distance(tmp_path: Path) -> None:
    found = values(tmp_path, SAME[:8], prompt_ids=["000"] * 8, samples=[*range(8)])
    assert {found[name].state for name in NAMES} == {"not_applicable"}
    assert found["kid"].reason == "comparing sets needs images of at least 2 prompts, found 8 of one prompt"
