"""Assets by name: downloads, interruptions, wrong digests, pinning and offline use, against a Hub on the loopback."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hub import Hub, serving

from sdbench import suites
from sdbench.assets import catalogue, weights
from sdbench.assets.catalogue import Asset, File
from sdbench.errors import MissingError, UserError

ROOT = Path(__file__).parents[2]
WEIGHTS, CONFIG = bytes(range(256)) * 400, b'{"hidden_size": 4}'


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with three assets: a network of two files, a file with a stated digest, and one from outside the Hub."""
    with serving(tmp_path, monkeypatch) as server:
        server.put("lab/network/config.json", CONFIG)
        server.put("lab/network/model.safetensors", WEIGHTS)
        stated = server.put("lab/stated/weights.bin", WEIGHTS)
        elsewhere = server.put("releases/old.pth", WEIGHTS[::-1])
        known = (
            Asset("network", "model:lab/network", (File("config.json", len(CONFIG)), File("model.safetensors", len(WEIGHTS))), ("fd.lab",)),
            Asset("stated", "model:lab/stated", (File("weights.bin", len(WEIGHTS), stated),), ("clip_score.lab",)),
            Asset("elsewhere", f"{server.url}/releases", (File("old.pth", len(WEIGHTS), elsewhere),)),
        )
        monkeypatch.setattr(catalogue, "ASSETS", {asset.name: asset for asset in known})
        monkeypatch.setenv("SDBENCH_WEIGHTS", str(tmp_path / "weights"))
        monkeypatch.setattr(weights, "_out_of_reach", {})
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)  # bytes written at a time
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
        yield server


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def final_files(tmp_path: Path) -> list[str]:
    """Files under their final names."""
    home = tmp_path / "weights"
    return sorted(
        str(file.relative_to(home))
        for file in home.rglob("*")
        if file.is_file() and not file.relative_to(home).parts[0].startswith((".", "digests"))
    )


def test_asset_is_fetched_once_and_then_read_from_disk(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"  # not there yet, as on a new machine
    monkeypatch.setenv("SDBENCH_WEIGHTS", str(cache / "weights"))
    assert weights.find("stated").read_bytes() == WEIGHTS
    folder = weights.find("network")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {"config.json": CONFIG, "model.safetensors": WEIGHTS}
    assert weights.find("elsewhere").read_bytes() == WEIGHTS[::-1]
    assert final_files(cache) == ["elsewhere/old.pth", "network/config.json", "network/model.safetensors", "stated/weights.bin"]
    assert not list((cache / "weights").glob(".arriving*"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = dict(hub.hits)
    assert weights.find("network") == folder
    assert weights.find("stated").read_bytes() == weights.find("elsewhere").read_bytes()[::-1]
    assert dict(hub.hits) == before


@pytest.mark.parametrize(("name", "path"), [("stated", "lab/stated/weights.bin"), ("elsewhere", "releases/old.pth")])
def test_interrupted_download_resumes_where_it_stopped(name: str, path: str, hub: Hub) -> None:
    hub.cuts[path] = 60_000
    assert len(weights.find(name).read_bytes()) == len(WEIGHTS)
    assert hub.hits[path] == 2
    assert hub.ranges == ["bytes=60000-"]


def test_killed_fetch_from_outside_the_hub_resumes(hub: Hub, tmp_path: Path) -> None:
    part = tmp_path / "weights" / ".arriving-elsewhere" / "old.pth"
    part.parent.mkdir(parents=True)
    part.write_bytes(WEIGHTS[::-1][:70_000])
    assert weights.find("elsewhere").read_bytes() == WEIGHTS[::-1]
    assert hub.ranges == ["bytes=70000-"]


def test_partial_file_longer_than_the_asset_is_fetched_anew(hub: Hub, tmp_path: Path) -> None:
    part = tmp_path / "weights" / ".arriving-elsewhere" / "old.pth"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(len(WEIGHTS) + 1))
    assert weights.find("elsewhere").read_bytes() == WEIGHTS[::-1]
    assert hub.ranges == []


@pytest.mark.parametrize(("name", "path"), [("stated", "lab/stated/weights.bin"), ("elsewhere", "releases/old.pth")])
def test_wrong_digest_is_rejected_and_leaves_no_file(name: str, path: str, hub: Hub, tmp_path: Path) -> None:
    other = hub.put(path, bytes(len(WEIGHTS)))
    with pytest.raises(
        UserError, match=rf"of '{name}' has SHA-256 {other}, but {catalogue.ASSETS[name].files[0].sha256} its source states"
    ):
        weights.find(name)
    assert final_files(tmp_path) == []
    assert not [file for file in (tmp_path / "weights").rglob("*") if file.is_file() and file.stat().st_size == len(WEIGHTS)]
    hub.put(path, WEIGHTS if name == "stated" else WEIGHTS[::-1])
    assert weights.find(name).is_file()  # the failed try does not block the next


@pytest.mark.usefixtures("hub")
def test_unknown_digest_is_pinned_at_first_use_and_a_change_is_rejected(tmp_path: Path) -> None:
    assert weights.is_unverified("network")
    assert not weights.is_unverified("stated")
    folder = weights.find("network")
    assert weights.digest("stated") == hashlib.sha256(WEIGHTS).hexdigest()
    pinned = weights.digest("network")
    assert pinned == hashlib.sha256("".join(hashlib.sha256(part).hexdigest() for part in (CONFIG, WEIGHTS)).encode()).hexdigest()
    (folder / "model.safetensors").write_bytes(WEIGHTS[:-1] + b"x")
    with pytest.raises(UserError, match=r"was pinned when it was first used; delete .*digests/network\.json to trust"):
        weights.find("network")
    (tmp_path / "weights" / "digests" / "network.json").unlink()  # trusts the new file
    assert weights.digest("network") != pinned


@pytest.mark.usefixtures("hub")
def test_stated_digest_is_checked_on_disk_too(tmp_path: Path) -> None:
    (tmp_path / "weights" / "stated").mkdir(parents=True)
    (tmp_path / "weights" / "stated" / "weights.bin").write_bytes(b"by hand")
    with pytest.raises(UserError, match="its source states"):
        weights.find("stated")
    assert final_files(tmp_path) == ["stated/weights.bin"]  # the user's file is kept


def test_digest_is_computed_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    weights.find("stated")
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("hashed again"))
    weights.find("stated")
    assert hub.hits["lab/stated/weights.bin"] == 1


@pytest.mark.usefixtures("hub", "offline")
def test_offline_error_lists_every_file_with_its_size_and_destination(tmp_path: Path) -> None:
    with pytest.raises(MissingError) as found:
        weights.find("network")
    message = str(found.value)
    assert message.startswith("weights: 'network' is not on this disk and cannot be fetched (")
    for part in (
        f"config.json ({len(CONFIG)} bytes)",
        f"model.safetensors ({len(WEIGHTS) / 1000:.3g} kB)",
        "`hf download lab/network --repo-type model config.json model.safetensors`",
    ):
        assert part in message
    assert f"put them into {tmp_path / 'weights' / 'network'}" in message
    assert f"(to use another folder than {tmp_path / 'weights'}, name it in the environment variable SDBENCH_WEIGHTS)" in message
    with pytest.raises(MissingError, match=r"offline mode is enabled \(HF_HUB_OFFLINE\)"):
        weights.find("elsewhere")


def test_file_absent_from_the_hub_is_missing(hub: Hub) -> None:
    (hub.root / "lab/stated/weights.bin").unlink()
    with pytest.raises(MissingError, match=r"EntryNotFound"):
        weights.find("stated")
    assert weights.find("network").is_dir(), "a Hub that answers is within reach"


@pytest.mark.usefixtures("hub")
def test_host_out_of_reach_is_not_waited_for_with_each_asset(monkeypatch: pytest.MonkeyPatch) -> None:
    tries, download = [], huggingface_hub.hf_hub_download

    def counted(repository: str, *arguments: Any, **options: Any) -> Any:
        tries.append(repository)
        return download(repository, *arguments, **options)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", counted)
    with monkeypatch.context() as unplugged:
        unplugged.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
        for name in ("stated", "network", "stated"):
            with pytest.raises(MissingError, match=rf"'{name}' is not on this disk .*connection.* Needed of model:lab/{name}"):
                weights.find(name)
    assert tries == ["lab/stated"]
    assert weights.find("elsewhere").read_bytes() == WEIGHTS[::-1], "another host"
    monkeypatch.setattr(weights, "PATIENCE_S", 0)
    assert weights.find("stated").read_bytes() == WEIGHTS


@pytest.mark.usefixtures("hub", "offline")
def test_hub_cache_is_used_offline(tmp_path: Path) -> None:
    snapshot = tmp_path / "cache" / "models--lab--network" / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("c" * 40, encoding="utf-8")
    (snapshot / "config.json").write_bytes(CONFIG)
    assert [file.name for file in weights.missing_files([catalogue.ASSETS["network"]])] == ["config.json", "model.safetensors"]
    (snapshot / "model.safetensors").write_bytes(WEIGHTS)
    assert weights.missing_files([catalogue.ASSETS["network"]]) == []
    assert weights.find("network") == snapshot


@pytest.mark.usefixtures("hub")
def test_only_missing_files_of_a_folder_are_fetched(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "weights" / "network").mkdir(parents=True)
    (tmp_path / "weights" / "network" / "model.safetensors").write_bytes(WEIGHTS)
    assert [file.name for file in weights.missing_files([catalogue.ASSETS["network"]])] == ["config.json"]
    weights.find("network")
    assert dict(hub.hits) == {"lab/network/config.json": 1}


def test_concurrent_finds_fetch_an_asset_once(hub: Hub) -> None:
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(weights.find, ["network"] * 3))
    assert len(set(found)) == 1
    assert dict(hub.hits) == {"lab/network/config.json": 1, "lab/network/model.safetensors": 1}


@pytest.mark.usefixtures("hub")
def test_damaged_digest_file_is_named(tmp_path: Path) -> None:
    weights.find("network")
    (tmp_path / "weights" / "digests" / "network.json").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"digests/network\.json holds no digests \(.*delete it"):
        weights.find("network")


def test_read_only_folder_works_without_a_digest_file(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights.find("stated")
    (tmp_path / "weights" / "digests" / "stated.json").unlink()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "write_bytes", refuse)
    weights._sha256.cache_clear()
    calls, file_digest = [], hashlib.file_digest

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return file_digest(*arguments)

    monkeypatch.setattr("hashlib.file_digest", counted)
    assert weights.find("stated").read_bytes() == WEIGHTS
    assert weights.digest("stated") == hashlib.sha256(WEIGHTS).hexdigest()
    assert len(calls) == 1
    assert hub.hits["lab/stated/weights.bin"] == 1


@pytest.mark.usefixtures("hub")
def test_unknown_asset_error_suggests_the_nearest_name() -> None:
    with pytest.raises(UserError, match="unknown asset 'netwerk'; did you mean 'network'"):
        weights.find("netwerk")


def test_environment_variables_apply_in_separate_processes(hub: Hub, tmp_path: Path) -> None:
    """As a user sets them: HF_ENDPOINT for the mirror, HF_HUB_OFFLINE afterwards."""
    places = {"PYTHONPATH": str(ROOT), "SDBENCH_WEIGHTS": str(tmp_path / "own"), "HF_HOME": str(tmp_path / "hf")}
    environment = {**os.environ, **places, "HF_HUB_OFFLINE": "0"}
    files = f"File('config.json', {len(CONFIG)}), File('model.safetensors', {len(WEIGHTS)})"
    code = f"""from sdbench.assets import catalogue, weights
from sdbench.assets.catalogue import Asset, File
catalogue.ASSETS = {{'network': Asset('network', 'model:lab/network', ({files}))}}
print(weights.find('network'), weights.digest('network'))"""

    def run_fetch(**variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code], env={**environment, **variables}, capture_output=True, encoding="utf-8", check=False
        )

    absent = run_fetch(HF_HUB_OFFLINE="1")
    assert "MissingError: weights: 'network' is not on this disk" in absent.stderr
    online, offline = run_fetch(HF_ENDPOINT=hub.url), run_fetch(HF_HUB_OFFLINE="1")
    assert online.stdout.startswith(f"{tmp_path / 'own' / 'network'} "), online.stderr
    assert offline.stdout == online.stdout


# ---- the catalogue ----


def test_every_full_size_metric_of_a_shipped_suite_has_its_weights_in_the_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    without_weights = {"agreement.ssim"}  # compares pixels
    metrics = {name for suite in map(suites.load_part, suites.names()) for name in suite.metrics.get("sdxl", ())} - without_weights
    assert {name for name in metrics if not catalogue.evaluators_for([name])} == set()


def test_evaluators_are_found_by_metric_name() -> None:
    def needs(*metrics: str) -> list[str]:
        return [asset.name for asset in catalogue.evaluators_for(metrics)]

    assert needs("fid.mlperf", "clip_score.mlperf") == ["inception-2015", "clip-vit-b-32"]
    assert needs("win_rate.pickscore.v1") == ["pickscore-v1"]
    assert needs("imagereward.v1") == needs("win_rate.imagereward.v1") == ["imagereward-v1", "bert-base-uncased"]
    assert needs("aesthetic.laion-v2") == ["clip-vit-l-14", "aesthetic-laion-v2"]
    assert needs("fd.scenes", "clip_score.scenes", "kid.scenes") == []
    assert needs("fidelity") == []


def test_stated_digests_are_complete_and_match_those_in_file_names() -> None:
    files = [file for asset in catalogue.ASSETS.values() for file in asset.files]
    assert all(len(file.sha256) == 64 and int(file.sha256, 16) for file in files if file.sha256)
    hashed = {found[1]: file.sha256 or "" for file in files if (found := re.search(r"-([0-9a-f]{8})\.pth$", file.name))}
    assert len(hashed) == 2
    assert all(digest.startswith(prefix) for prefix, digest in hashed.items())
