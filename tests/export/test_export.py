"""An exported model says what the trained one says, in every format, or is refused."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hmtl_dist.export.folder as folder_module
import hmtl_dist.launch.export as export_module
from hmtl_dist.errors import UserError
from hmtl_dist.export.folder import open_model
from hmtl_dist.export.graphs import open_pt2, refuse_pickles
from hmtl_dist.export.parity import check_parity
from hmtl_dist.inference.info import Format, read_info
from hmtl_dist.inference.model import InferenceModel
from hmtl_dist.launch.driver import Finished
from hmtl_dist.launch.export import export_model
from hmtl_dist.launch.models import load_trained, read_pictures
from hmtl_dist.tasks.reading import HeadOutput
from tests.export import trained

FORMATS: tuple[Format, ...] = ("safetensors", "onnx", "pt2")

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return trained.train(tmp_path_factory.mktemp("drawn"), "tiny")


@pytest.fixture(scope="module")
def exported(run: Finished, tmp_path_factory: pytest.TempPathFactory) -> dict[Format, Path]:
    """The run's model in every format."""
    folder = tmp_path_factory.mktemp("exported")
    return {form: Path(export_model("tiny", form=form, out=folder / form).folder) for form in FORMATS}


def pictures(count: int) -> Tensor:
    return torch.rand(count, 3, trained.SIZE, trained.SIZE, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("count", [1, 7])
def test_the_exported_model_says_what_the_trained_one_says(
    exported: dict[Format, Path], form: Format, count: int
) -> None:
    images = pictures(count)
    expected = load_trained("tiny").answer(images)
    said = open_model(exported[form]).answer(images)
    assert list(said) == trained.HEADS
    for task, values in said.items():
        assert values.shape == expected[task].shape
        assert torch.allclose(values, expected[task], rtol=1e-5, atol=2e-5)


def test_onnx_is_one_file_that_onnxruntime_alone_runs(exported: dict[Format, Path]) -> None:
    import onnxruntime  # pyright: ignore[reportMissingTypeStubs]

    session: Any = onnxruntime.InferenceSession(exported["onnx"] / "model.onnx", providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == trained.HEADS
    expression, *_ = session.run(None, {"images": pictures(3).numpy()})
    assert np.allclose(expression.sum(1), 1, atol=1e-6)
    assert {path.name for path in exported["onnx"].iterdir()} == {"model.onnx", "model.json", "README.md"}


def test_the_documented_lines_run_it(
    exported: dict[Format, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parents[2] / "docs" / "inference.md"
    (lines,) = re.findall(r"```python\n(import numpy.*?)```", page.read_text(), re.DOTALL)
    (tmp_path / "expression-onnx").symlink_to(exported["onnx"])
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(lines.replace("224, 224", f"{trained.SIZE}, {trained.SIZE}"), found)  # noqa: S102 - the page's own
    assert found["expression"].shape[0] == 2


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_of_an_export_is_a_pickle(exported: dict[Format, Path], form: Format) -> None:
    blobs = [path.read_bytes() for path in exported[form].iterdir()]
    if form == "pt2":
        with zipfile.ZipFile(exported[form] / "model.pt2") as archive:
            blobs = [archive.read(entry) for entry in archive.infolist()]
    starts = {blob[:2] for blob in blobs}
    assert not starts & {b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK"}


def test_an_archive_with_a_pickle_in_it_is_not_opened(tmp_path: Path) -> None:
    class Twice(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(Twice(), (torch.ones(2),)), path)  # with its example, as torch does
    with pytest.raises(UserError, match=r"sample_inputs/model\.pt, which may be a pickle; it is not opened"):
        refuse_pickles(path)


def test_an_archive_with_a_pickled_tensor_is_not_opened(exported: dict[Format, Path], tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(exported["pt2"] / "model.pt2") as whole, zipfile.ZipFile(path, "w") as archive:
        for entry in whole.infolist():
            data = whole.read(entry)
            if entry.filename.endswith("model_weights_config.json"):
                data = data.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
            archive.writestr(entry.filename, data)
    with pytest.raises(UserError, match=r"holds a pickled tensor in data/weights/model_weights_config\.json"):
        open_pt2(path)


def test_onnx_without_its_packages_is_refused_in_one_line(
    run: Finished, exported: dict[Format, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime is needed for a model in ONNX: install the extra `export`"):
        open_model(exported["onnx"])
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"onnx and onnxscript are needed for --format onnx"):
        export_model("tiny", form="onnx", out=tmp_path / "x")


def test_the_info_says_how_to_feed_and_read_it_and_where_it_comes_from(
    run: Finished, exported: dict[Format, Path]
) -> None:
    info = json.loads((exported["onnx"] / "model.json").read_text())
    assert (info["format"], info["format_version"], info["image_size"]) == ("onnx", 1, trained.SIZE)
    assert info["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert info["tasks"]["expression"]["names"][:2] == ["neutral", "happy"]
    origin = info["origin"]
    assert (origin["run"], origin["weights"], origin["global_step"]) == ("tiny", "ema", run.outcome.global_step)
    assert origin["test_set"]["num_samples"] == 24
    assert origin["recipe"]["tasks"]["puzzling"]["type"] == "puzzling"
    assert "tracking" not in origin["recipe"]
    assert origin["metrics"]["eval/age/mae_age"] == run.outcome.metrics["eval/age/mae_age"]
    assert info["parity"]["num_samples"] == 24
    assert info["parity"]["max_difference"] <= info["parity"]["tolerance"] == 1e-5


def test_the_card_tells_the_figures_of_the_kept_heads(exported: dict[Format, Path]) -> None:
    card = (exported["safetensors"] / "README.md").read_text()
    headings = re.findall(r"^## (.+)$", card, re.MULTILINE)
    assert headings == [
        *("Use", "Data", "What it is worth", "Figures of the run"),
        *("Intended use and limits", "Files", "Recipe"),
    ]
    assert re.search(
        r"^\| expression \| accuracy \d+\.\d% \| \d+\.\d% to \d+\.\d% \| 24 \| \d+ \|$", card, re.MULTILINE
    )
    assert "| age/mae_age |" in card
    assert "puzzling/accuracy" not in card
    assert read_info(exported["safetensors"]).sha256 in card


@pytest.mark.parametrize("form", FORMATS)
def test_the_exported_model_is_worth_what_the_run_logged(
    run: Finished, exported: dict[Format, Path], form: Format
) -> None:
    told = read_info(exported[form]).found
    assert list(told) == trained.HEADS
    logged = run.outcome.metrics
    assert told["expression"].value == pytest.approx(logged["ema/expression/accuracy"])
    assert told["age"].value == pytest.approx(logged["ema/age/mae_age"], rel=1e-4)
    assert told["age"].num_samples == 24
    assert told["age"].num_groups < 24  # several pictures show one drawn person
    for one in told.values():
        assert one.low is not None
        assert one.high is not None
        assert one.low < one.value < one.high


def test_integers_of_8_bits_are_a_smaller_file_whose_loss_is_told(run: Finished, tmp_path: Path) -> None:
    export_model("tiny", form="onnx", out=tmp_path / "float", measure=False)
    found = export_model("tiny", form="onnx-int8", out=tmp_path / "int8").info
    assert (tmp_path / "int8" / "model.onnx").stat().st_size < 0.5 * (tmp_path / "float" / "model.onnx").stat().st_size
    assert found.format == "onnx"
    assert found.quantized is not None
    assert found.quantized.calibrated_on > 24
    whole = read_info(tmp_path / "float")
    assert (whole.found, whole.quantized) == ({}, None)
    images = pictures(5)
    said, expected = (open_model(tmp_path / name).answer(images)["expression"] for name in ("int8", "float"))
    assert 0 < (said - expected).abs().max() < 0.2
    card = (tmp_path / "int8" / "README.md").read_text()
    assert "It computes in 8-bit integers" in card
    assert f"| {found.found['age'].num_groups} | {found.quantized.float32['age']:.4g} |" in card
    assert {path.name for path in (tmp_path / "int8").iterdir()} == {"README.md", "model.json", "model.onnx"}


def test_without_figures_integers_say_that_their_loss_is_not_known(
    run: Finished, exported: dict[Format, Path], tmp_path: Path
) -> None:
    """Of a stored model too, which knows where it was trained."""
    found = export_model(str(exported["safetensors"]), form="onnx-int8", out=tmp_path / "int8", measure=False).info
    assert (found.found, found.quantized is None) == ({}, False)
    card = (tmp_path / "int8" / "README.md").read_text()
    assert "What that costs was not measured." in " ".join(card.split())
    assert "What it is worth" not in card


def test_the_held_out_fold_gives_no_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained.train(tmp_path, "folded", data={"folds": 2, "fold": 1})
    seen: list[Tensor] = []

    def note(path: Path, pictures: Tensor) -> None:
        seen.append(pictures)

    monkeypatch.setattr(export_module, "quantize_onnx", note)
    export_model("folded", form="onnx-int8", out=tmp_path / "int8", measure=False)
    model = load_trained("folded")
    held_out = read_pictures(model.config, model.evaluation, 1000)
    (learned,) = seen
    assert len(learned) + len(held_out) > 24
    assert not {picture.numpy().tobytes() for picture in learned} & {one.numpy().tobytes() for one in held_out}


def test_chosen_heads_alone_are_kept_and_a_stored_model_is_exported_again(
    exported: dict[Format, Path], tmp_path: Path
) -> None:
    whole = exported["safetensors"]
    found = export_model(str(whole), form="safetensors", out=tmp_path / "age", heads=["age"])
    assert list(found.info.tasks) == list(found.info.found) == ["age"]
    assert found.info.num_parameters < read_info(whole).num_parameters
    said = open_model(tmp_path / "age").answer(pictures(2))
    assert torch.allclose(said["age"], open_model(whole).answer(pictures(2))["age"], atol=1e-5)


def test_last_and_averaged_weights_differ(run: Finished, tmp_path: Path) -> None:
    last = export_model(run.folder, form="safetensors", out=tmp_path / "last", weights="last").info
    average = export_model(run.folder, form="safetensors", out=tmp_path / "ema", weights="ema").info
    assert last.origin is not None
    assert last.origin.weights == "last"
    assert last.sha256 != average.sha256


def test_a_model_that_says_something_else_is_refused_and_nothing_is_written(
    run: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = folder_module.load_model

    def off(folder: Path, device: str = "cpu") -> InferenceModel:
        model = load(folder, device)
        with torch.no_grad():
            model.get_parameter("model.heads.age.linear.bias").add_(1e-3)
        return model

    monkeypatch.setattr(folder_module, "load_model", off)
    with pytest.raises(UserError, match=r"differs from the trained one by 0\.001 at head 'age' on 24 pictures"):
        export_model("tiny", form="pt2", out=tmp_path / "off")
    assert not list(tmp_path.iterdir())


def test_what_is_no_number_is_refused() -> None:
    heads = {"mood": HeadOutput(type="classification", names=("calm", "glad"))}
    with pytest.raises(UserError, match="says of head 'mood' what is no number"):
        check_parity(heads, {"mood": torch.ones(1, 2)}, {"mood": torch.full((1, 2), torch.nan)})


def test_angles_are_compared_the_short_way_round_in_radians() -> None:
    heads = {"pose": HeadOutput(type="rotation", names=("yaw", "pitch", "roll"))}
    one, other = torch.tensor([[180.0, 0.0, 0.0]]), torch.tensor([[-179.9998, 0.0, 0.0]])
    found = check_parity(heads, {"pose": one}, {"pose": other})
    assert found.max_difference == pytest.approx(2e-4 / 57.3, rel=0.1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"heads": ["puzzling"]}, r"--head: 'puzzling' is not one of expression, age, pose"),
        ({"weights": "best"}, "told no best evaluation apart"),
        ({"data": "s3://hmtl/nope"}, "--data: tiny is a run, whose own test set is read"),
        ({"out": Path("/nowhere/model")}, "--out /nowhere/model: there is no folder '/nowhere'"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(
    run: Finished, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    options = {"out": tmp_path / "x", **options}
    with pytest.raises(UserError, match=said):
        export_model("tiny", form="safetensors", **options)


def test_a_folder_that_is_there_is_not_written_over(run: Finished, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already; remove it, or name another folder"):
        export_model("tiny", form="safetensors", out=tmp_path)


def test_a_damaged_export_is_not_opened(exported: dict[Format, Path], tmp_path: Path) -> None:
    for path in exported["onnx"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = bytearray((tmp_path / "model.onnx").read_bytes())
    weights[len(weights) // 2] ^= 1
    (tmp_path / "model.onnx").write_bytes(weights)
    with pytest.raises(UserError, match=r"model\.onnx: is damaged, its sha256 is not the one in model\.json"):
        open_model(tmp_path)


def test_the_command_answers_in_json_and_refuses_an_unknown_run_in_one_line(run: Finished, tmp_path: Path) -> None:
    def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hmtl_dist", "export", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    answer = json.loads(ask(run.folder, "--json").stdout)
    assert answer["folder"] == "tiny-safetensors"
    assert (tmp_path / "tiny-safetensors" / "model.safetensors").is_file()
    refused = ask("nobody")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert refused.stderr.count("\n") == 1
