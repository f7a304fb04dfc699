"""A trained model is stored without a pickle, and answers like the model that was trained."""

import base64
import io
import subprocess
import sys
from pathlib import Path
from typing import Any, cast
from zipfile import ZipFile

import numpy as np
import pandas as pd  # pyright: ignore[reportMissingTypeStubs]
import pytest
import torch
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModelStatus
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load

from hmtl_dist.augment import AugmentConfig
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.errors import UserError
from hmtl_dist.inference.folder import write_model
from hmtl_dist.inference.predictor import Predictor
from hmtl_dist.model.hmtl import HMTLModel, ModelConfig
from hmtl_dist.tasks.age import AgeConfig
from hmtl_dist.tasks.base import CLEAN
from hmtl_dist.tasks.classification import ClassificationConfig
from hmtl_dist.tasks.head_pose import HeadPoseConfig
from hmtl_dist.tasks.numbers import NumberTask
from hmtl_dist.tasks.puzzling import PuzzlingConfig
from hmtl_dist.tasks.registry import build_tasks
from hmtl_dist.tasks.regression import RegressionConfig
from hmtl_dist.tracking.config import Recording, TrackingConfig, resolve
from hmtl_dist.tracking.runs import create_run
from hmtl_dist.tracking.sink import open_tracker

# MLflow's own `mlflow.types.responses` makes it warn of itself when `mlflow.pyfunc` is imported.
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

SIZE = 32
CONFIG = ModelConfig(backbone="test_efficientnet")
FIELDS = {"expression": Field(kind="category", classes=("happy", "sad", "angry")), "age": Field(kind="number")}
COLUMNS = ["expression.happy", "expression.sad", "expression.angry", "age.age"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[HMTLModel, Path]:
    """A model with a pretext task, as if trained, and its folder."""
    configs = {"expression": ClassificationConfig(), "age": RegressionConfig(), "puzzling": PuzzlingConfig()}
    tasks = build_tasks(configs, FIELDS, {}, {}, SIZE)
    wiring = {"expression": (CLEAN,), "age": (CLEAN,), "puzzling": ("puzzling",)}
    model = HMTLModel(CONFIG, {task.name: task.head_spec() for task in tasks}, wiring, log_vars=("expression",))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("linear.bias"):
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("model")
    write_model(
        folder, model.state_dict(), config=CONFIG, augment=AugmentConfig(eval_crop=1.0), image_size=SIZE, tasks=tasks
    )
    return model.eval(), folder


@pytest.fixture(scope="module")
def pictures() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def expected(trained: tuple[HMTLModel, Path], pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What the trained model itself says, `[N, columns]`."""
    with torch.inference_mode():
        outputs = trained[0].predict(torch.as_tensor(pictures).permute(0, 3, 1, 2).float() / 255)
    return torch.cat([outputs["expression"].softmax(1), outputs["age"] * 20 + 40], dim=1).double().numpy()


def test_the_folder_answers_like_the_model(
    trained: tuple[HMTLModel, Path], pictures: NDArray[np.uint8], expected: NDArray[np.float64]
) -> None:
    table = Predictor(trained[1]).predict(pictures)
    assert list(table) == COLUMNS
    assert np.allclose(np.column_stack(list(table.values())), expected, atol=1e-5)


def test_poses_are_answered_in_degrees_and_ages_in_years(tmp_path: Path, pictures: NDArray[np.uint8]) -> None:
    degrees = Field(kind="number", unit="degrees")
    fields = {"yaw": degrees, "pitch": degrees, "roll": degrees, "age": Field(kind="number", unit="years")}
    configs = {"sixd": HeadPoseConfig(), "binned": HeadPoseConfig(method="binned"), "age": AgeConfig()}
    tasks = [task for task in build_tasks(configs, fields, {}, {}, SIZE) if isinstance(task, NumberTask)]
    model = HMTLModel(CONFIG, {task.name: task.head_spec() for task in tasks}, dict.fromkeys(configs, (CLEAN,)))
    with torch.no_grad():
        for head in model.heads.parameters():
            head.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    write_model(tmp_path, model.state_dict(), config=CONFIG, augment=AugmentConfig(), image_size=SIZE, tasks=tasks)

    table = Predictor(tmp_path).predict(pictures)

    with torch.inference_mode():
        outputs = model.eval().predict(torch.as_tensor(pictures).permute(0, 3, 1, 2).float() / 255)
    for task in tasks:
        said = np.stack([table[f"{task.name}.{label}"] for label in task.labels], 1)
        assert np.allclose(said, task.predictions(outputs[task.name]).numpy(), atol=1e-3)


def test_only_what_inference_needs_is_kept(trained: tuple[HMTLModel, Path]) -> None:
    names = load((trained[1] / "model.safetensors").read_bytes())
    tops = {".".join(name.split(".")[: 1 if name.startswith("backbone") else 2]) for name in names}
    assert tops == {"backbone", "heads.expression", "heads.age"}


def test_encoded_pictures_are_taken_too(trained: tuple[HMTLModel, Path], pictures: NDArray[np.uint8]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pictures[0]).save(buffer, "PNG")
    assert np.array_equal(Predictor(trained[1]).decode([buffer.getvalue()])[0], pictures[0])


def test_no_pictures_give_an_empty_table(trained: tuple[HMTLModel, Path]) -> None:
    table = Predictor(trained[1]).predict(np.empty((0, SIZE, SIZE, 3), np.uint8))
    assert [len(values) for values in table.values()] == [0, 0, 0, 0]


def test_pictures_of_another_size_are_refused_in_one_line(trained: tuple[HMTLModel, Path]) -> None:
    with pytest.raises(UserError, match=r"give uint8 \(N, 32, 32, 3\)"):
        Predictor(trained[1]).predict(np.zeros((1, 16, 16, 3), np.uint8))


def test_a_folder_without_a_model_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model here \(model\.json is missing\)"):
        Predictor(tmp_path)


def test_weights_that_were_cut_short_are_refused_in_one_line(trained: tuple[HMTLModel, Path], tmp_path: Path) -> None:
    for file in trained[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: 1000 if file.suffix == ".safetensors" else None])
    with pytest.raises(UserError, match=r"does not fit model\.json"):
        Predictor(tmp_path)


# --- in MLflow -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(
    trained: tuple[HMTLModel, Path], mlflow_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Recording:
    """The section of a run that recorded the model twice, as one does that is resumed at its end."""
    config = TrackingConfig(
        uri=mlflow_server, experiment="models", system_metrics=False, register_model="faces", register_alias="tested"
    )
    recording = resolve(config, create_run(config, name="a run: v1.0"))
    client = MlflowClient(recording.uri)
    experiment = client.get_run(str(recording.run_id)).info.experiment_id
    for _ in range(2):
        client.create_logged_model(experiment, name="torn", source_run_id=recording.run_id)  # by a delivery that died
        tracker = open_tracker(recording, tmp_path_factory.mktemp("scratch"))
        tracker.model(trained[1])
        tracker.close("FINISHED")
    return recording


@pytest.fixture(scope="module")
def stored(recorded: Recording, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The registered model, downloaded."""
    folder = tmp_path_factory.mktemp("download")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            patch.setenv(name, str(recorded.uri))
        download_artifacts("models:/faces@tested", dst_path=str(folder))
    return folder


@pytest.fixture(scope="module")
def loaded(stored: Path) -> Any:
    """The model, loaded where unpickling is forbidden."""
    from mlflow.pyfunc import load_model  # here, where its warning is expected

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        return load_model(str(stored))


def as_png(picture: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_mlflow_model_answers_like_the_model(
    loaded: Any, pictures: NDArray[np.uint8], expected: NDArray[np.float64]
) -> None:
    table = loaded.predict(pd.DataFrame({"picture": list(pictures)}))
    assert list(table.columns) == COLUMNS
    assert np.allclose(table.to_numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("form", ["bytes", "base64 text", "one array", "records in JSON", "inputs in JSON"])
def test_the_mlflow_model_takes_pictures_as_bytes_or_arrays(
    loaded: Any, pictures: NDArray[np.uint8], expected: NDArray[np.float64], form: str
) -> None:
    from mlflow.pyfunc.scoring_server import (  # here, where its warning is expected
        infer_and_parse_data,  # pyright: ignore[reportUnknownVariableType]
    )

    files = [as_png(picture) for picture in pictures]
    texts = [base64.b64encode(file).decode() for file in files]
    parse = cast(Any, infer_and_parse_data)  # what MLflow's server makes of a request
    requests = {
        "records in JSON": {"dataframe_records": [{"picture": text} for text in texts]},
        "inputs in JSON": {"inputs": {"picture": texts}},
    }
    if form in requests:
        given: Any = parse(requests[form], loaded.metadata.signature.inputs)
    else:
        columns: dict[str, Any] = {"bytes": files, "base64 text": texts, "one array": pictures}
        given = {"picture": columns[form]}
    assert np.allclose(loaded.predict(given).to_numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("picture", [b"no picture", "no base64!", np.zeros((16, 16, 3), np.uint8), 3, None])
def test_the_mlflow_model_refuses_what_is_no_picture_in_one_line(loaded: Any, picture: object) -> None:
    with pytest.raises(Exception, match=r"^picture 1: ") as caught:
        loaded.predict(pd.DataFrame({"picture": [np.zeros((SIZE, SIZE, 3), np.uint8), picture]}))
    assert "\n" not in str(caught.value)


def test_the_unwrapped_mlflow_model_takes_encoded_pictures(loaded: Any, pictures: NDArray[np.uint8]) -> None:
    table = loaded.unwrap_python_model().predict(None, [as_png(pictures[0])])
    assert np.allclose(table.to_numpy(), loaded.predict({"picture": pictures[:1]}).to_numpy(), atol=1e-6)


def test_the_mlflow_model_has_a_signature(loaded: Any) -> None:
    signature = loaded.metadata.signature
    assert [spec.name for spec in signature.outputs.inputs] == COLUMNS
    assert [spec.name for spec in signature.inputs.inputs] == ["picture"]


def test_the_input_example_is_answered(stored: Path, loaded: Any) -> None:
    example = loaded.metadata.load_input_example(str(stored))
    assert len(loaded.predict(example)) == 1


def test_nothing_of_the_mlflow_model_is_a_pickle(stored: Path) -> None:
    files = [file for file in stored.rglob("*") if file.is_file()]
    assert any(file.name == "model.safetensors" for file in files)
    assert not [file for file in files if file.suffix in {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"}]
    assert not [file for file in files if file.read_bytes()[:2] in {b"\x80\x04", b"\x80\x05"}]


def test_the_mlflow_model_brings_its_own_code_and_nothing_compiled(stored: Path) -> None:
    assert [path.name for path in (stored / "code").iterdir()] == ["hmtl_dist.zip"]
    with ZipFile(stored / "code" / "hmtl_dist.zip") as archive:
        assert "hmtl_dist/inference/folder.py" in archive.namelist()
    assert not list(stored.rglob("__pycache__"))


def test_the_mlflow_model_predicts_with_the_code_that_it_brings(stored: Path, tmp_path: Path) -> None:
    program = f"""
import mlflow.pyfunc
loaded = mlflow.pyfunc.load_model({str(stored)!r})
answer = loaded.predict(loaded.metadata.load_input_example({str(stored)!r}))
import hmtl_dist.inference.predictor as used
print(used.__file__)
print(list(answer.columns))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    *_, file, columns = done.stdout.splitlines()
    assert file == f"{stored}/code/hmtl_dist.zip/hmtl_dist/inference/predictor.py"
    assert columns == str(COLUMNS)


def test_a_run_has_one_model_which_is_called_like_it(recorded: Recording) -> None:
    client = MlflowClient(recorded.uri)
    (model,) = client.search_logged_models([client.get_run(str(recorded.run_id)).info.experiment_id])
    assert (model.name, model.source_run_id, model.status) == ("a run- v1-0", recorded.run_id, LoggedModelStatus.READY)


def test_the_same_model_is_registered_once(recorded: Recording) -> None:
    client = MlflowClient(recorded.uri, recorded.uri)
    versions = client.search_model_versions("name = 'faces'")
    assert [version.run_id for version in versions] == [recorded.run_id]
