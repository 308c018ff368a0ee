"""Whatever an exported folder holds, it is loaded, or refused in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest
from fuzzing import damaged, fuzzed
from hypothesis import given
from hypothesis import strategies as st
from served import reseal
from starlette.testclient import TestClient

from bend_ray.errors import BendError, DataError
from bend_ray.serve.bag import Bag

FILES = ("config.json", "members.safetensors", "member.onnx")


@pytest.mark.slow
@given(data=st.data(), name=st.sampled_from(FILES), sealed=st.booleans())
@fuzzed(20)
def test_any_file_of_a_bag(
    folder: Path, tmp_path: Path, data: st.DataObject, name: str, sealed: bool
) -> None:
    for each in FILES:
        shutil.copyfile(folder / each, tmp_path / each)
    content = (folder / name).read_bytes()
    (tmp_path / name).write_bytes(data.draw(damaged(content)))
    if sealed and name != "config.json":
        reseal(tmp_path)
    try:
        Bag.load(tmp_path)
    except BendError as error:
        told = str(error)
    else:
        return
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd"])
def test_a_graph_that_reads_other_files_is_refused(
    folder: Path, tmp_path: Path, location: str
) -> None:
    bag = tmp_path / "bag"
    shutil.copytree(folder, bag)
    (tmp_path / "secret").write_bytes(bytes(4096))
    model = onnx.load_model(str(bag / "member.onnx"))
    tensor = onnx.helper.make_tensor("stolen", onnx.TensorProto.FLOAT, [4], bytes(16), raw=True)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    model.graph.initializer.append(tensor)
    (bag / "member.onnx").write_bytes(model.SerializeToString())
    reseal(bag)
    with pytest.raises(DataError, match=r"^[^\n]*(inside|relative)[^\n]*$"):
        Bag.load(bag)


@pytest.mark.parametrize(
    "path",
    [
        *("/v2/models/..%2f..%2fetc", "/v2/models/%00", "/v2/models/bag/versions/..%2f.."),
        *("/v2/models/" + "x" * 9000, "/v2/models/bag%0a", "/static/../../etc/passwd"),
    ],
)
def test_names_of_models_are_looked_up_and_nothing_else(http: TestClient, path: str) -> None:
    done = http.get(path)
    assert 400 <= done.status_code < 500
    assert "passwd" not in done.text
