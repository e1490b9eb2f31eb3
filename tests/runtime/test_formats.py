from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from helpers import golden

from xopt.runtime.cascade import fingerprint
from xopt.runtime.cascade.cascade import Cascade, Certificate, find_cheaper_model
from xopt.runtime.cascade.fingerprint import model_fingerprint
from xopt.runtime.cascade.order import Order
from xopt.runtime.cascade.rule import Rule
from xopt.runtime.data.columns import Columns
from xopt.runtime.data.places import Place
from xopt.runtime.data.sources import Source
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import Manifest, ModelFolder, Plan, Variant
from xopt.runtime.jobs.inputs.files import File, Reader
from xopt.runtime.jobs.job import Job, Record, Settings
from xopt.runtime.jobs.request import Resources, checked_request
from xopt.runtime.jobs.score import Counts

# Of golden/0.1.0/model, by the version before fingerprints had a scheme.
WITHOUT_SCHEME = {
    False: "d0edd16d6bab09a0179973582e19e587775fbdbd7713af8cf815a7146f4dcc17",
    True: "1e91289bf316f727df5e23936030a17c08d11c664fac6bfb6ba3972cc36a75e9",
}
FIRST = golden.GOLDEN / "0.1.0"
VERSIONS = sorted(golden.GOLDEN.iterdir())
XOPT_JSON = f"{golden.MODEL}/xopt.json"
JOB = f"{golden.OUT}.job"
JOB_JSON = f"{JOB}/job.json"
KEPT: dict[type, tuple[Any, ...]] = {  # where one of each kind stands: a file, and the keys
    Manifest: (XOPT_JSON,),
    Variant: (XOPT_JSON, "variants", golden.VARIANT),
    Plan: (XOPT_JSON, "plans", "a machine", golden.VARIANT),
    Cascade: (XOPT_JSON, "cascade"),
    Order: (XOPT_JSON, "cascade", "order"),
    Rule: (XOPT_JSON, "cascade", "rule"),
    Certificate: (XOPT_JSON, "cascade", "certificate"),
    Record: (JOB_JSON,),
    Settings: (JOB_JSON, "settings"),
    Columns: (JOB_JSON, "settings", "columns"),
    Source: (JOB_JSON, "sources", 0),
    Place: (JOB_JSON, "sources", 0, "place"),
    File: (JOB_JSON, "files", 0),
    Counts: (f"{JOB}/done/000000.json",),
}


def at(values: Any, keys: tuple[Any, ...]) -> Any:
    for key in keys:
        values = values[key]
    return values


def kept(kind: type) -> dict[str, Any]:
    """What the first version wrote of such a value."""
    file, *keys = KEPT[kind]
    return at(json.loads((FIRST / file).read_text()), tuple(keys))


def default_of(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


@pytest.mark.parametrize("kind", KEPT, ids=lambda kind: kind.__name__)
def test_what_was_added_since_has_an_empty_default(kind: type) -> None:
    here = {field.name: field for field in fields(kind)}
    there = kept(kind).keys() - {"format"}
    assert there <= here.keys(), "a later version reads what an earlier one wrote"
    for name in here.keys() - there:
        default = default_of(here[name])
        assert default is not MISSING, f"{name}: see runtime/formats.py"
        assert not default, f"{name}: see runtime/formats.py"


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_the_folder_of_each_version_opens_and_has_its_fingerprints(version: Path) -> None:
    model = ModelFolder.open(version / golden.MODEL)
    assert Cascade.of(model).variant == golden.VARIANT
    expected = json.loads((version / golden.FINGERPRINTS).read_text())
    found = {
        "without a cascade": model_fingerprint(model, golden.VARIANT, cascade=False),
        "with the cascade": model_fingerprint(model, golden.VARIANT, cascade=True),
    }
    assert found == expected
    written = json.loads(model.manifest.to_json())
    before = json.loads((version / XOPT_JSON).read_text())
    assert {name: written[name] for name in before} == before


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_the_job_of_each_version_goes_on(version: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(version, tmp_path / "moved")
    inputs = [str(folder / name) for name in golden.INPUTS]
    model = ModelFolder.open(folder / golden.MODEL)
    out = str(folder / golden.OUT)
    request = checked_request(model, inputs, out, Settings(), Resources())
    job = Job.open(request.target)
    assert job is not None
    request = request.with_variant_of(job.record.settings, Resources())
    job.go_on(request.settings, request.sources, request.fingerprint(job.record.model))
    assert job.has_files()
    assert [counts.rows for counts in job.done().values()] == [8]
    (left,) = job.left(job.parts())
    ((number, start, stop),) = left.slices
    file = job.record.files[number]
    rows = Reader(file, job.record.schema.names).rows(start, stop).to_pylist()
    assert [row["doc_id"] for row in rows] == list(range(8, 16))
    assert [each.name for each in job.record.files] == inputs


@pytest.mark.parametrize("cascade", [False, True])
def test_fingerprints_from_before_they_had_a_scheme_are_known(cascade: bool) -> None:
    model = ModelFolder.open(FIRST / golden.MODEL)
    before = WITHOUT_SCHEME[cascade]
    assert model_fingerprint(model, golden.VARIANT, cascade, like=before) == before
    now = model_fingerprint(model, golden.VARIANT, cascade)
    assert now.startswith("2:")
    with pytest.raises(BadInput, match=r"by a newer xopt \(scheme 3\); use that version"):
        model_fingerprint(model, golden.VARIANT, cascade, like="3:0123")


def test_a_cascade_knows_its_cheaper_model_by_either_scheme() -> None:
    folder = ModelFolder.open(FIRST / golden.MODEL)
    order = replace(Cascade.of(folder).order, model=str(folder.path), variant=golden.VARIANT)
    now = model_fingerprint(folder, golden.VARIANT, cascade=False)
    for sha256 in (WITHOUT_SCHEME[False], now):
        found = find_cheaper_model(folder, replace(order, sha256=sha256))
        assert found == (folder, golden.VARIANT)
    with pytest.raises(BadInput, match=r"is not what the cascade of .* was certified with"):
        find_cheaper_model(folder, replace(order, sha256="0" * 64))


def test_each_field_of_the_manifest_makes_scores_or_does_not() -> None:
    said = [*fingerprint.MAKES_SCORES, *fingerprint.MAKES_NO_SCORES, *fingerprint.PARTLY]
    assert sorted(said) == sorted(field.name for field in fields(Manifest)), (
        "say in runtime/cascade/fingerprint.py whether the new field makes scores"
    )


def test_a_new_field_at_its_default_changes_no_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelFolder.open(FIRST / golden.MODEL)
    with_new = make_dataclass("Later", [("new", str, "")], bases=(Manifest,), frozen=True)
    later = replace(model, manifest=with_new(**vars(model.manifest)))
    used = replace(model, manifest=with_new(**vars(model.manifest), new="used"))
    monkeypatch.setattr(fingerprint, "MAKES_SCORES", (*fingerprint.MAKES_SCORES, "new"))
    for like in ("", WITHOUT_SCHEME[False]):
        same = model_fingerprint(model, golden.VARIANT, False, like)
        assert model_fingerprint(later, golden.VARIANT, False, like) == same
        assert model_fingerprint(used, golden.VARIANT, False, like) != same


def test_what_makes_no_scores_changes_no_fingerprint() -> None:
    model = ModelFolder.open(FIRST / golden.MODEL)
    before = model_fingerprint(model, golden.VARIANT, cascade=True)
    for name in fingerprint.MAKES_NO_SCORES:
        other = replace(model, manifest=replace(model.manifest, **{name: {}}))
        assert model_fingerprint(other, golden.VARIANT, cascade=True) == before
    other = replace(model, manifest=replace(model.manifest, suffix=[1]))
    assert model_fingerprint(other, golden.VARIANT, cascade=True) != before


def _without_files(values: dict[str, Any]) -> None:
    del values["files"]


NEWER = r"xopt.json: was written by a newer xopt \({}\); use that version, or export the model"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values.update(format=2), NEWER.format("format 2")),
        (lambda values: values.update(new=[1], more="x"), NEWER.format("which has 'new', 'more'")),
        (
            lambda values: values["variants"]["onnx-fp32"].update(new=1),
            NEWER.format("which has 'new'"),
        ),
        (
            lambda values: values["plans"]["a machine"]["onnx-fp32"].update(new=1),
            NEWER.format("which has 'new'"),
        ),
        (_without_files, r"xopt.json: is damaged, or no manifest \(it lacks 'files'\)"),
        (lambda values: values.pop("format"), "it has no format number"),
    ],
)
def test_a_folder_of_a_newer_version_is_refused_in_one_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    _changed(tmp_path, change)
    with pytest.raises(BadInput, match=said) as refused:
        ModelFolder.open(tmp_path / golden.MODEL)
    assert "\n" not in str(refused.value)


def test_what_a_newer_version_left_empty_says_nothing(tmp_path: Path) -> None:
    def add(values: dict[str, Any]) -> None:
        values.update(new={})
        values["cascade"]["rule"].update(new=None)
        del values["rank_label"]

    _changed(tmp_path, add)
    opened = ModelFolder.open(tmp_path / golden.MODEL)
    before = ModelFolder.open(FIRST / golden.MODEL)
    assert opened.manifest.rank_label == []
    assert Cascade.of(opened) == Cascade.of(before)


def test_a_cascade_of_a_newer_version_is_refused_in_one_line(tmp_path: Path) -> None:
    _changed(tmp_path, lambda values: values["cascade"]["order"].update(new=1))
    opened = ModelFolder.open(tmp_path / golden.MODEL)
    with pytest.raises(BadInput, match=r"its cascade was made by a newer xopt \(which has 'new'\)"):
        Cascade.of(opened)


def _changed(to: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """A copy of the first version's manifest, changed."""
    shutil.copytree(FIRST / golden.MODEL, to / golden.MODEL)
    file = to / XOPT_JSON
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))
