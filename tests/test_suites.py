"""Suite files: misspelt keys are reported, and everything that affects a number is in the digest."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from sdbench import api, disk, suites
from sdbench.assets.catalogue import ASSETS
from sdbench.errors import UserError
from sdbench.scenes.grammar import scene_at
from sdbench.score import PROTOCOLS
from sdbench.settings import Probes, Setting
from sdbench.suites import Part, Prompts, Suite

ROOT = Path(__file__).parents[1]
SHIPPED = sorted(path.stem for path in (ROOT / "suites").glob("*.toml") if path.stem != "gate")
OWN = """
name = "own"
version = 1
family = "scenes"
description = "for tests"
include = []

[metrics]
scenes = ["scene_accuracy"]

[prompts]
n = 3

[sampling]
steps = 4
guidance_scale = 2.5
size_px = 64
dtype = "float32"
batch = 2

[noise]
seed = 7

[probes]
rounds = 1
calls = 2
warmup = 0
"""
PROMPTS, SAMPLING, NOISE = (
    OWN[OWN.index(start) : OWN.index(end)] for start, end in pairwise(["[prompts]", "[sampling]", "[noise]", "[probes]"])
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `./suites`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suites").mkdir()
    return tmp_path / "suites"


def write(folder: Path, old: str = "", new: str = "", name: str = "own", text: str = OWN) -> str:
    assert old in text
    (folder / f"{name}.toml").write_text(text.replace(old, new, 1), encoding="utf-8")
    return name


def digest(folder: Path, old: str = "", new: str = "") -> str:
    return suites.load(write(folder, old, new)).id.digest


@pytest.mark.parametrize(
    ("right", "wrong", "where"),
    [
        ("version", "verison", ""),  # required
        ("include", "inclde", ""),  # optional
        ("[sampling]", "[sampilng]", ""),
        ("steps", "step", "in [sampling] "),  # required
        ("guidance_scale", "guidance", "in [sampling] "),
        ("n", "m", "in [prompts] "),
        ("seed", "sead", "in [noise] "),
        ("warmup", "warm_up", "in [probes] "),
    ],
)
def test_misspelt_key_is_reported_with_the_right_one(right: str, wrong: str, where: str, folder: Path) -> None:
    line = right if right.startswith("[") else f"\n{right} ="
    name = write(folder, line, line.replace(right, wrong))
    with pytest.raises(UserError) as caught:
        suites.load(name)
    expected = f"suite suites/own.toml: unknown key {where}{wrong.strip('[]')!r}; did you mean {right.strip('[]')!r}?"
    if right == "n":  # too short for a suggestion
        expected = (
            f"suite suites/own.toml: unknown key {where}'m'; known: column, digest, file, groups, n, path, samples, seed, source, split"
        )
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 4", "", r"sampling\.steps: Field required"),
        ("steps = 4", "steps = 0", r"sampling\.steps: .*greater than 0 \(found 0\)"),
        ("size_px = 64", "size_px = 2147483648", r"sampling\.size_px: .*less than or equal to 16384 \(found 2147483648\)"),
        ("batch = 2", "batch = 1000000000", r"sampling\.batch: .*less than or equal to 4096"),
        ("n = 3", "n = 1000000000", r"prompts\.n: .*less than or equal to 1000000"),
        ("guidance_scale = 2.5", "guidance_scale = inf", r"sampling\.guidance_scale: .*finite number \(found inf\)"),
        ("size_px = 64", 'size_px = 64\nscheduler = "lmc"', r"sampling\.scheduler: unknown value 'lmc'; did you mean 'lcm'\?$"),
        (
            "size_px = 64",
            'size_px = 64\ntimestep_spacing = "trailing"',
            r"needs a scheduler that supports it \(ddim, .*, euler-ancestral\), not 'model'",
        ),
        ("size_px = 64", 'size_px = 64\nscheduler = "lcm"\ntimestep_spacing = "trailing"', "not 'lcm'"),
        ("size_px = 64", 'size_px = 64\nprediction_type = "sample"', r"prediction_type needs a scheduler .*\(ddim, .*, tcd\), not 'model'"),
        ("size_px = 64", 'size_px = 64\nscheduler = "euler"\nprediction_type = "v"', "'v'; known: epsilon, sample, v_prediction"),
        ("size_px = 64", 'size_px = 64\nscheduler = "ddim"\ntimesteps = [999, 749, 499, 249]', r"\(dpmpp, euler, lcm, tcd\), not 'ddim'"),
        ("size_px = 64", 'size_px = 64\nscheduler = "euler"\neta = 0.3', r"\(ddim, tcd\), not 'euler'"),
        (
            "size_px = 64",
            'size_px = 64\nscheduler = "lcm"\ntimesteps = [999, 749]',
            "toml: sampling: there must be as many .*found 2 and 4$",
        ),
        (
            "size_px = 64",
            'size_px = 64\nscheduler = "lcm"\ntimesteps = [999, 749, 749, 249]',
            r"timesteps must decrease .*\[999, 749, 749, 249\]$",
        ),
        (
            "size_px = 64",
            'size_px = 64\nscheduler = "euler"\ntimestep_spacing = "trailing"\ntimesteps = [999, 749, 499, 249]',
            "exclude each other",
        ),
        ("size_px = 64", "size_px = 60", r"sampling\.size_px: .*multiple of 8"),
        ("size_px = 64", "size_px = 64\nheight_px = 64", "height_px is for images that are not square; with a size_px of 64, leave it out"),
        ('"float32"', '"float64"', r"sampling\.dtype: unknown value 'float64'; did you mean 'float16'\?$"),
        ("calls = 2", "calls = 1", r"probes\.calls"),
        ("warmup = 0", "warmup = 0\nsettings = [{ batch = 0 }]", r"probes\.settings\.0\.batch: .*greater than 0"),
        ("warmup = 0", "warmup = 0\nsettings = [{ batch = 8 }, { batch = 8, calls = 3 }]", "setting 'b8' is listed more than once"),
        ("warmup = 0", "warmup = 0\nsettings = [{}, { batch = 8 }]", r"probes\.settings: 'base' is always measured; leave it out of"),
        ("warmup = 0", "warmup = 0\nsettings = [{ calls = 3 }]", "'base' is always measured"),
        ("n = 3", "n = 3\ngroups = { one = 1, other = 1 }", r"prompts: .*the 'groups' have 2 prompts in total, but 'n' is 3"),
        ("n = 3", "n = 3\ngroups = { none = 0, all = 3 }", r"prompts\.groups\.none: .*greater than 0"),
        ('name = "own"', 'name = "../own"', r"name: .*should match pattern .*\(found '\.\./own'\)"),
        ('family = "scenes"', 'family = "scene"', r"family: unknown value 'scene'; did you mean 'scenes'\?$"),
        ("scenes = [", "scene = [", r"metrics\.scene.*did you mean 'scenes'"),
        ("[prompts]", "[prompts", "is not valid TOML"),
    ],
)
def test_invalid_value_is_reported_with_what_is_expected(old: str, new: str, message: str, folder: Path) -> None:
    name = write(folder, old, new)
    with pytest.raises(UserError, match=message) as caught:
        suites.load(name)
    assert "suites/own.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("table", "key", "value", "known"),
    [
        ("prompts", "looked", "2", "column, digest, file, groups, n, path, samples, seed, source, split"),
        ("prompts", "look", "2", "column, digest, file, groups, n, path, samples, seed, source, split"),
        ("teacher", "changed", "{}", "model, suite"),
        ("teacher", "options", '["--n", "2"]', "model, suite"),
        ("teacher", "option", "[]", "model, suite"),
    ],
)
def test_key_that_only_the_program_writes_is_unknown_and_not_suggested(table: str, key: str, value: str, known: str, folder: Path) -> None:
    write(folder, f"[{table}]", f"[{table}]\n{key} = {value}", text=f'{OWN}[teacher]\nmodel = "x"\n')
    with pytest.raises(UserError, match=rf"^suite suites/own\.toml: unknown key in \[{table}\] '{key}'; known: {known}$"):
        suites.load("own")


@pytest.mark.parametrize(("lacking", "text"), [("family", 'family = "scenes"\n'), ("prompts", PROMPTS), ("sampling", SAMPLING)])
def test_suite_that_lacks_some_of_what_makes_one_is_no_part(lacking: str, text: str, folder: Path) -> None:
    write(folder, text)
    for load in (suites.load, suites.load_part):
        with pytest.raises(UserError, match=rf"^suite suites/own\.toml: {lacking}: Field required$"):
            load("own")


def test_part_is_included_but_is_no_suite(folder: Path) -> None:
    part = OWN.replace(f"{PROMPTS}{SAMPLING}{NOISE}", "").replace('family = "scenes"\n', "")
    write(folder, text=part)
    timed = Probes(rounds=1, calls=2, warmup=0)
    assert suites.load_part("own") == Part(
        name="own", version=1, description="for tests", metrics={"scenes": ("scene_accuracy",)}, probes=timed
    )
    with pytest.raises(UserError, match=r"^suite 'own' is a part: it has no family, .* such as 'quality' or 'standard'$"):
        suites.load("own")
    write(folder, text=f"{part}{NOISE}")
    with pytest.raises(UserError, match="family: Field required"):  # noise is of images, of which a part has none
        suites.load_part("own")
    taught = suites.load(write(folder, "include = []", 'teacher = { model = "x", suite = "fid" }'))
    with pytest.raises(UserError, match="suite 'fid' is a part"):
        taught.teacher_suite()


@pytest.mark.parametrize(("family", "name"), [("scenes", "quality"), ("sdxl", "standard"), ("custom", "standard")])
def test_default_suite_is_that_of_the_family(family: str, name: str) -> None:
    assert suites.load_default(family) == suites.load(name)


def test_timing_of_latency_is_that_of_memory(folder: Path) -> None:
    (folder / "latency.toml").write_text(
        'name = "latency"\nversion = 2\ndescription = "a part"\n[probes]\nrounds = 2\ncalls = 3\nwarmup = 1\n', encoding="utf-8"
    )
    assert suites.load("standard").probes == suites.load_part("vram").probes == Probes(rounds=2, calls=3, warmup=1)


def test_one_step_of_a_sampling_is_its_first(folder: Path) -> None:
    sampling = suites.load(write(folder)).sampling
    assert sampling.with_one_step == sampling.model_copy(update={"steps": 1})
    listed = sampling.model_copy(update={"scheduler": "lcm", "timesteps": (999, 749, 499, 249)})
    assert listed.with_one_step == listed.model_copy(update={"steps": 1, "timesteps": (999,)})


def test_misspelt_key_of_a_setting_is_reported(folder: Path) -> None:
    name = write(folder, "warmup = 0", "warmup = 0\nsettings = [{ batch = 8 }, { compil = 'whole' }]")
    with pytest.raises(UserError, match=r"unknown key in \[probes\.settings\.1\] 'compil'; did you mean 'compile'\?"):
        suites.load(name)


def test_label_of_a_setting_lists_what_it_changes() -> None:
    assert Setting().label == "base"
    every = Setting(batch=8, dtype="float16", compile="blocks", channels_last=True, vae="tiny", calls=3)
    assert every.label == "b8+float16+compiled-blocks+channels-last+tiny-vae"
    probes = Probes(rounds=1, calls=2, warmup=0, settings=(Setting(compile="whole"), Setting(batch=2)))
    assert list(probes.select()) == ["base", "compiled", "b2"]
    assert list(probes.select(["b2", "base"])) == ["base", "b2"]
    with pytest.raises(UserError, match="unknown setting 'compild'; did you mean 'compiled'"):
        probes.select(["compild"])


def test_empty_settings_do_not_change_the_digest() -> None:
    assert "settings" not in Probes(rounds=1, calls=2, warmup=0).model_dump()


def test_unknown_suite_is_an_error_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match="unknown suite 'qualty'; did you mean 'quality'"):
        suites.load("qualty")
    with pytest.raises(UserError, match=r"no suite file elsewhere/own\.toml"):
        suites.load("elsewhere/own.toml")
    current = suites.load("quality")
    assert suites.load(current.id.title) == current
    with pytest.raises(UserError, match=rf"there is no suite quality@1: .*quality\.toml has version {current.version}"):
        suites.load("quality@1")
    assert "gate" not in suites.names()


def test_suite_file_can_be_given_by_path(folder: Path, tmp_path: Path) -> None:
    write(folder)
    write(tmp_path, name="elsewhere")
    assert suites.load(str(tmp_path / "elsewhere.toml")) == suites.load("own")


def test_includes_are_merged_and_the_suite_itself_takes_precedence(folder: Path) -> None:
    part = 'name = "{}"\nversion = 1\ndescription = "a part"\n'
    write(
        folder,
        name="one",
        text=part.format("one") + '[metrics]\nscenes = ["fd.scenes", "scene_accuracy"]\n[probes]\nrounds = 9\ncalls = 9\nwarmup = 9\n',
    )
    write(
        folder, name="two", text='reference = "scenes"\n' + part.format("two") + '[metrics]\nscenes = ["clip_score.scenes"]\nsdxl = ["x"]\n'
    )
    suite = suites.load(write(folder, "include = []", 'include = ["one", "two"]'))
    assert suite.metrics == {"scenes": ("scene_accuracy", "fd.scenes", "clip_score.scenes")}  # none of the other family's
    assert suite.reference == "scenes"
    assert suite.probes == Probes(rounds=1, calls=2, warmup=0)
    probes = OWN[OWN.index("[probes]") :]
    without = OWN.replace(probes, "").replace("include = []", 'include = ["one", "two"]')
    merged = suites.load(write(folder, name="own", text=without))
    assert merged.probes == Probes(rounds=9, calls=9, warmup=9)
    write(folder, name="two", text=part.format("two"))
    assert suites.load("own").id != merged.id


def test_parts_with_different_probes_are_refused_unless_the_suite_states_its_own(folder: Path) -> None:
    part = 'name = "{0}"\nversion = 1\ndescription = "a part"\n[probes]\nrounds = {1}\ncalls = 9\nwarmup = 9\n'
    for name, rounds in {"one": 9, "two": 3, "like-one": 9}.items():
        write(folder, name=name, text=part.format(name, rounds))
    without = OWN.replace(OWN[OWN.index("[probes]") :], "")
    with pytest.raises(UserError, match=r"suites/own\.toml includes 'two', whose \[probes\] differ from those of a part before it; state"):
        suites.load(write(folder, "include = []", 'include = ["one", "two"]', text=without))
    alike = suites.load(write(folder, "include = []", 'include = ["one", "like-one"]', text=without))
    assert alike.probes == Probes(rounds=9, calls=9, warmup=9)
    assert suites.load(write(folder, "include = []", 'include = ["one", "two"]')).probes == Probes(rounds=1, calls=2, warmup=0)


def test_unknown_include_is_an_error(folder: Path) -> None:
    write(folder, name="latency", text=OWN)
    for name, message in (
        ("latncy", "unknown suite 'latncy'; did you mean 'latency'"),
        ("latncy.toml", "no suite file latncy.toml"),
        ("latency@9", "there is no suite latency@9"),
    ):
        with pytest.raises(UserError, match=rf"^suite {folder}/own\.toml: include: {message}"):
            suites.load(write(folder, "include = []", f'include = ["{name}"]'))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name = "own"', 'name = "owns"'),
        ("version = 1", "version = 2"),
        ('["scene_accuracy"]', '["scene_accuracy"]\nsdxl = ["x"]'),
        ("n = 3", "n = 3\nseed = 1"),
        ("size_px = 64", 'size_px = 64\nnegative_prompt = ""'),
        ("[noise]", '[noise]\nkind = "fixed"'),
        ("seed = 7", "seed = 8"),
        ("warmup = 0", "warmup = 1"),
        ("warmup = 0", "warmup = 0\nsettings = [{ batch = 8 }]"),
    ],
)
def test_every_setting_that_has_no_option_is_in_the_digest(old: str, new: str, folder: Path) -> None:
    """Those that have one are in that of an overridden suite; see test_overrides.py."""
    assert digest(folder, old, new) != digest(folder)


@pytest.mark.parametrize("more", ["timesteps = [9, 5, 3, 1]", "eta = 0.5"])
def test_settings_of_a_scheduler_are_in_the_digest(more: str, folder: Path) -> None:
    plain = 'steps = 4\nscheduler = "tcd"'
    assert digest(folder, "steps = 4", f"{plain}\n{more}") != digest(folder, "steps = 4", plain)


def test_suite_of_the_teacher_is_in_the_digest(folder: Path) -> None:
    write(folder, name="long", text=OWN.replace('"own"', '"long"'))
    own, named = (
        digest(folder, "include = []", f"include = []\nteacher = {{ {what} }}") for what in ('model = "x"', 'model = "x", suite = "long"')
    )
    assert len({digest(folder), own, named}) == 3
    write(folder, name="long", text=OWN.replace('"own"', '"long"').replace("steps = 4", "steps = 25"))
    longer = suites.load(write(folder, "include = []", 'include = []\nteacher = { model = "x", suite = "long" }'))
    assert longer.id.digest != named
    assert longer.teacher_suite() == suites.load("long")
    assert suites.load("long").teacher_suite() == suites.load("long")
    assert (longer.other_suite, suites.load("long").other_suite) == ("long", None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed = 7", "seed = 8", r"cannot be paired with its own: noise \{'kind': 'per_image', 'seed': 7\} against .*8"),
        ("size_px = 64", "size_px = 72", "size_px 64 against 72"),
        ("size_px = 64", "size_px = 64\nheight_px = 72", "height_px None against 72"),
        ('family = "scenes"', 'family = "sdxl"', "family scenes against sdxl"),
        ("n = 3", "n = 2", "lacks 1 of its prompts at their places, such as 'a "),
        ("include = []", 'teacher = { model = "y", suite = "own" }', "takes its own from 'own'; name that one"),
    ],
)
def test_teacher_whose_images_cannot_be_paired_is_rejected(old: str, new: str, message: str, folder: Path) -> None:
    write(folder, old, new, name="long", text=OWN.replace('"own"', '"long"'))
    suite = suites.load(write(folder, "include = []", 'include = []\nteacher = { model = "x", suite = "long" }'))
    with pytest.raises(UserError, match=message):
        _ = suite.id


def test_description_and_comments_are_not_in_the_digest(folder: Path) -> None:
    assert digest(folder, "for tests", "for more tests") == digest(folder)
    assert digest(folder, "n = 3", 'source = "scenes"\nn = 3 # a comment') == digest(folder)


def test_prompt_texts_are_in_the_digest(folder: Path) -> None:
    def digest_of(*prompts: str) -> str:
        (folder / "prompts.txt").write_text("\n\n".join(prompts) + "\n", encoding="utf-8")
        suite = suites.load(write(folder, "n = 3", 'source = "file"\nfile = "prompts.txt"\nn = 2'))
        assert tuple(suite.prompt_list().values()) == prompts[:2]
        return suite.id.digest

    one = digest_of("a cat", "a dog")
    assert digest_of("a cat", "a dog", "unused") == one
    assert digest_of("a cat", "a fox") != one
    assert digest_of("a dog", "a cat") != one
    with pytest.raises(UserError, match="holds 1 prompts; the suite asks for 2"):
        digest_of("a cat")


def test_prompt_file_is_relative_to_the_suite_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    written = {place: f"{place.name}: a cat\n" for place in (folder, tmp_path / "own")}
    for place, prompts in written.items():
        (place / "prompts.txt").write_text(prompts, encoding="utf-8")
        write(place, "n = 3", 'source = "file"\nfile = "prompts.txt"\nn = 1')
    shipped, own, by_path = (suites.load(what) for what in ("own", "own/own.toml", "suites/own.toml"))
    assert [list(suite.prompt_list().values()) for suite in (shipped, own)] == [["suites: a cat"], ["own: a cat"]]
    assert by_path == shipped
    (tmp_path / "own" / "prompts.txt").write_text(written[folder], encoding="utf-8")
    assert own.id.digest == shipped.id.digest, "the digest does not depend on the place of the prompts"


def test_latent_included_suite_and_that_of_the_teacher_are_relative_to_the_suite_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    for number, place in enumerate((folder, tmp_path / "own")):
        (place / "latent.pt").write_bytes(bytes([number]))
        write(place, "n = 3", "n = 4", name="teachers")
        write(place, "seed = 7", 'kind = "fixed"\nfile = "latent.pt"\n[teacher]\nmodel = "it"\nsuite = "teachers.toml"')
    own = suites.load("own/own.toml")
    assert (own.noise.path(), own.teacher and own.teacher.suite) == (Path("own/latent.pt"), "own/teachers.toml")
    assert own.noise.identity() != suites.load("own").noise.identity()
    write(tmp_path / "own", "include = []", 'include = ["part.toml"]')
    write(tmp_path / "own", "include = []", 'reference = "photographs"', name="part")
    assert suites.load("own/own.toml").reference == "photographs"


def test_suite_file_that_is_not_text_is_an_error(folder: Path) -> None:
    (folder / "own.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(UserError, match="is not valid TOML"):
        suites.load("own")


def test_missing_prompt_file_is_an_error(folder: Path) -> None:
    suite = suites.load(write(folder, "n = 3", 'source = "file"\nfile = "nowhere.txt"\nn = 2'))
    with pytest.raises(UserError, match=r"prompt file suites/nowhere\.txt"):
        suite.prompt_list()


def test_missing_latent_is_an_error(folder: Path) -> None:
    suite = suites.load(write(folder, "[noise]", '[noise]\nkind = "fixed"\nfile = "nowhere.pt"'))
    with pytest.raises(UserError, match=r"the suite's latent nowhere\.pt is missing: no file .*nowhere\.pt"):
        _ = suite.id


def test_prompt_ids_consist_of_position_and_text_digest(folder: Path) -> None:
    few, more = (suites.load(write(folder, "n = 3", f"n = {n}")).prompt_list() for n in (3, 5))
    assert list(few.items()) == list(more.items())[:3]
    assert list(few.values()) == [scene_at(index, "heldout").caption for index in range(3)]
    assert all(re.fullmatch(rf"0000{index}-[0-9a-f]{{8}}", prompt_id) for index, prompt_id in enumerate(few))


def test_groups_are_not_in_the_digest(folder: Path) -> None:
    plain = suites.load(write(folder))
    suite = suites.load(write(folder, "n = 3", "n = 3\ngroups = { first = 2, last = 1 }"))
    assert suite.prompts.groups == {"first": 2, "last": 1}
    assert suite.id == plain.id
    fewer = api.Overrides(n=2).apply(suite).prompts
    assert fewer.groups is None


def test_hpdv2_has_a_group_for_each_file_in_their_order() -> None:
    prompts, files = suites.load("hpdv2").prompts, ASSETS["hpdv2-prompts"].files
    assert prompts.groups == {Path(file.name).stem: 800 for file in sorted(files, key=lambda file: file.name)}


def test_groups_need_the_order_of_their_data_set() -> None:
    with pytest.raises(ValueError, match="a seed other than 0 draws from it"):
        Prompts(source="dataset", path="some", n=2, seed=1, groups={"both": 2})


def test_local_file_overrides_only_the_shipped_file_of_the_same_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = OWN[: OWN.index("[probes]")].replace('"own"', '"fid"')
    write(folder, 'scenes = ["scene_accuracy"]', 'scenes = ["clip_score.scenes"]', name="fid", text=part)
    write(folder, "include = []", 'include = ["fid", "clip_score", "agreement"]')
    assert suites.names() == sorted([*SHIPPED, "own"])
    assert suites.load("own").metrics["scenes"][:2] == ("scene_accuracy", "clip_score.scenes")  # from the local `fid`
    assert "agreement.ssim" in suites.load("own").metrics["scenes"]
    (folder / "prompts.txt").write_text("not the prompts of `standard`\n", encoding="utf-8")
    assert len(suites.load("standard").prompt_list()) == 64
    assert suites.find("gate.toml") == ROOT / "suites" / "gate.toml"
    (folder / "gate.toml").write_text("", encoding="utf-8")
    assert suites.find("gate.toml") == Path("suites/gate.toml")
    monkeypatch.chdir(folder)  # which has no ./suites
    assert suites.names() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_part_loads_and_every_suite_lists_its_prompts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    part = suites.load_part(name)
    assert part.name == name
    assert {metric for metrics in part.metrics.values() for metric in metrics} <= PROTOCOLS.keys()
    assert isinstance(part, Suite) == ("(a part: " not in part.description)
    if not isinstance(part, Suite) or part.prompts.source == "dataset":
        return  # those prompts have to be downloaded
    assert re.fullmatch("[0-9a-f]{16}", part.id.digest)
    assert len(part.prompt_list()) == part.prompts.n


def test_suites_that_include_each_other_are_an_error(folder: Path) -> None:
    write(folder, name="one", old="include = []", new='include = ["two"]')
    write(folder, name="two", old="include = []", new='include = ["one"]')
    with pytest.raises(UserError, match="suite one includes itself: one -> two -> one"):
        suites.load("one")
    write(folder, name="own", old="include = []", new='include = ["../suites/own.toml"]')
    with pytest.raises(UserError, match="suite own includes itself: own -> own"):
        suites.load("own")


def test_file_with_a_byte_order_mark_and_other_ends_of_lines_is_the_same_suite(folder: Path) -> None:
    plain = suites.load(write(folder)).id
    (folder / "own.toml").write_bytes(f"\ufeff{OWN}".replace("\n", "\r\n").encode())
    assert suites.load("own").id == plain


# Settings that a suite does not use are not in its digest, so these change with the suite's version alone.
DIGESTS = {
    "quality": (4, "39ce964345b3e9c7"),
    "efficiency-scenes": (1, "09e9c32843e0dd51"),
    "efficiency": (1, "a18de73947890156"),
    "standard": (5, "2d00152c4f05a87c"),
    "few-step": (3, "70b47f810a965d82"),
    "efficiency-cpu": (1, "ee189bc9c2a202b1"),
    "diversity-scenes": (1, "03a22b0996b18687"),
    "diversity": (1, "77b68f5a4446c016"),
}
OF_DATASETS = {  # the same without the prompts, which have to be downloaded
    "hpdv2": (3, "7fc22bc72348a13b"),
    "coco-30k": (1, "ce0370fc8d22e286"),
    "mlperf-sdxl": (1, "fc46fe25d4372851"),
}


@pytest.mark.parametrize("name", DIGESTS)
def test_digest_of_a_shipped_suite_is_that_of_its_records(name: str) -> None:
    found = suites.load(name).id
    assert (found.version, found.digest) == DIGESTS[name]


@pytest.mark.parametrize("name", OF_DATASETS)
def test_content_of_a_shipped_suite_of_a_dataset_changes_with_its_version(name: str) -> None:
    suite = suites.load(name)
    content = suite.model_dump(mode="json", exclude={"description", "include"})
    assert (suite.version, disk.digest(content)[:16]) == OF_DATASETS[name]


def test_content_of_every_shipped_suite_is_tested_here() -> None:
    assert {*DIGESTS, *OF_DATASETS} == {name for name in SHIPPED if isinstance(suites.load_part(name), Suite)}


def test_samples_are_in_the_digest_unless_there_is_one(folder: Path) -> None:
    plain, one, two = (suites.load(write(folder, "n = 3", f"n = 3{line}")) for line in ("", "\nsamples = 1", "\nsamples = 2"))
    assert plain.id == one.id != two.id
    assert (plain.samples, two.samples) == (1, 2)
    assert plain.prompt_list() == two.prompt_list()


def test_samples_from_one_latent_are_refused(folder: Path) -> None:
    write(folder, "seed = 7", 'kind = "fixed"', text=OWN.replace("n = 3", "n = 3\nsamples = 2"))
    expected = 'suite suites/own.toml: 2 samples of a prompt would be equal images, because noise of kind "fixed" is one latent for all'
    with pytest.raises(UserError, match=re.escape(expected)):
        suites.load("own")
    with pytest.raises(UserError, match=r"suite 'mlperf-sdxl' with your settings.* 4 samples of a prompt would be equal .*per_image"):
        api.Overrides(samples_per_prompt=4).apply(suites.load("mlperf-sdxl"))


def test_more_images_than_can_be_listed_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"'n' times 'samples' is 3,000,000 images; at most 1,000,000"):
        suites.load(write(folder, "n = 3", "n = 3\nsamples = 1_000_000"))


@pytest.mark.parametrize("batch", [1, 4, 32])
def test_look_order_takes_as_much_of_each_part_of_a_sorted_list(batch: int) -> None:
    ids = [f"{place:05d}" for place in range(3200)]
    order = suites.look_order(ids, batch)
    assert sorted(order) == ids
    for look in range(1, 101):
        parts = [sum(int(each) // 800 == part for each in order[: 32 * look]) for part in range(4)]
        assert max(parts) - min(parts) <= 3 * batch


def test_look_order_keeps_batches_together_and_a_short_one_last() -> None:
    ids = [f"{place:05d}" for place in range(11)]
    mixed = suites.look_order(ids, 4)
    assert mixed[8:] == ids[8:]
    assert sorted([mixed[:4], mixed[4:8]]) == [ids[:4], ids[4:8]]
