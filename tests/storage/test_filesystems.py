from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.fs
import pytest

from bend_ray.errors import StoreError
from bend_ray.storage.filesystems import (
    patiently,
    read_bytes,
    resolve,
    store_errors,
    write_atomically,
    write_bytes,
)
from bend_ray.storage.masking import masked
from bend_ray.storage.uris import joined

_S3, _ = resolve("s3://KEY:SECRET@bucket/runs?region=us-east-1")
Place = tuple[pyarrow.fs.FileSystem, str]


def on_disk(tmp_path: Path) -> Place:
    return pyarrow.fs.LocalFileSystem(), str(tmp_path)


def without_rename(tmp_path: Path) -> Place:
    """Not of type "local", so written to like an object store."""
    return pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem()), "bucket"


def in_memory(tmp_path: Path) -> Place:
    return pyarrow.fs._MockFileSystem(), "bucket"


@pytest.fixture(params=[on_disk, without_rename, in_memory])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    make: Callable[[Path], Place] = request.param
    return make(tmp_path)


def test_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for given, expected in {
        "runs": tmp_path / "runs",
        "~/runs": tmp_path / "home/runs",
        str(tmp_path / "a b?c"): tmp_path / "a b?c",
        f"file://{tmp_path}/runs": tmp_path / "runs",
    }.items():
        filesystem, path = resolve(given)
        assert filesystem.type_name == "local"
        assert path == str(expected)


def test_clouds_are_resolved_by_pyarrow() -> None:
    for uri, type_name in {
        "s3://KEY:SECRET@bucket/runs?region=us-east-1": "s3",
        "gs://anonymous@bucket/runs": "gcs",
        "abfs://account@bucket/runs": "abfs",
    }.items():
        filesystem, path = resolve(uri)
        assert (filesystem.type_name, path) == (type_name, "bucket/runs")


@pytest.mark.parametrize("uri", ["", "http://host/runs", "hdfs://host/runs", "mock:///runs"])
def test_other_schemes_are_refused_with_what_is_known(uri: str) -> None:
    with pytest.raises(StoreError, match=r"expected a path or file://, s3://.*got '"):
        resolve(uri)


@pytest.mark.parametrize(("uri", "meant"), [("s3:/b/runs", "s3://b/runs"), ("gs:b", "gs://b")])
def test_a_missing_slash_is_noticed(uri: str, meant: str) -> None:
    with pytest.raises(StoreError, match=rf"did you mean '{meant}'\?$"):
        resolve(uri)


def test_a_uri_without_a_bucket_is_refused() -> None:
    with pytest.raises(StoreError, match="names no bucket"):
        resolve("s3://?region=us-east-1")


def test_an_unescaped_secret_is_not_quoted_back() -> None:
    with pytest.raises(StoreError) as caught:
        resolve("s3://KEY:SE/CRET@bucket/runs")
    assert "CRET" not in str(caught.value)
    assert "bucket/runs" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://KEY:SECRET@bucket/a@b", "s3://***@b"),
        ("s3://KEY@bucket/a", "s3://***@bucket/a"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("abfs://container@account.dfs.core.windows.net/a", None),
        ("gs://anonymous@bucket/a", None),
        ("abfs://container:PASS@account/a", "abfs://***@account/a"),
        ("s3://b/a?secret_key=x&region=y", "s3://b/a?secret_key=***&region=y"),
        ("abfs://a@c/p?sv=1&sig=x%2F", "abfs://a@c/p?sv=***&sig=***"),
        (
            "s3://b/a?endpoint_override=http://u:p@h:9000",
            "s3://b/a?endpoint_override=http://***@h:9000",
        ),
        ("s3://b/a?endpoint_override=u:p@h:9000", "s3://b/a?endpoint_override=***"),
        ("s3://b/a?endpoint_override=http%3A%2F%2Fu%3Ap%40h", "s3://b/a?endpoint_override=***"),
        ("s3:/KEY:SECRET@bucket/a", "s3:/***@bucket/a"),
        ("s3://KEY:SE?C#RET@bucket/a", "s3://***@bucket/a"),
        (
            "https://b/a?X-Amz-Signature=x&X-Amz-Date=y",
            "https://b/a?X-Amz-Signature=***&X-Amz-Date=***",
        ),
        ("cannot parse 's3://K:S@b' at 3", "cannot parse 's3://***@b' at 3"),
        ("/home/me/a:b@c", None),
    ],
)
def test_credentials_are_masked(uri: str, expected: str | None) -> None:
    assert masked(uri) == (uri if expected is None else expected)


def test_names_are_joined_in_front_of_a_query() -> None:
    assert joined("/runs", "seeds") == "/runs/seeds"
    assert joined("/what?/", "seeds") == "/what?/seeds"
    assert joined("s3://b/runs/?region=x", "seeds", "f") == "s3://b/runs/seeds/f?region=x"


def test_bytes_come_back_and_parents_are_made(place: Place) -> None:
    filesystem, root = place
    path = f"{root}/a/b/file"
    assert read_bytes(filesystem, path) is None
    write_bytes(filesystem, path, b"one")
    write_bytes(filesystem, path, b"two")
    assert read_bytes(filesystem, path) == b"two"
    selector = pyarrow.fs.FileSelector(root, recursive=True)
    files = [info.path for info in filesystem.get_file_info(selector) if info.is_file]
    assert files == [path]


def test_a_failed_write_leaves_nothing(place: Place) -> None:
    filesystem, root = place

    def interrupted() -> None:
        with write_atomically(filesystem, f"{root}/file") as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert filesystem.get_file_info(pyarrow.fs.FileSelector(root)) == []


def test_a_local_file_keeps_its_content_while_it_is_rewritten(tmp_path: Path) -> None:
    filesystem, path = pyarrow.fs.LocalFileSystem(), str(tmp_path / "file")
    write_bytes(filesystem, path, b"old")
    with write_atomically(filesystem, path) as stream:
        stream.write(b"new")
        stream.flush()
        assert read_bytes(filesystem, path) == b"old"
        others = [name for name in os.listdir(tmp_path) if name != "file"]
        assert len(others) == 1
        assert others[0].endswith(".tmp")
    assert read_bytes(filesystem, path) == b"new"


def test_a_write_that_cannot_be_made_says_where_and_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(StoreError, match=r"cannot write .*file/inside: .*non-directory entry"):
        write_bytes(pyarrow.fs.LocalFileSystem(), str(tmp_path / "file/inside"), b"")


def test_only_an_object_store_that_passes_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("bend_ray.storage.filesystems.time.sleep", pauses.append)
    away = StoreError("cannot write it: AWS Error NETWORK_CONNECTION during PutObject operation")
    for filesystem, answers, most in (
        (_S3, [away, away, "there"], 2),
        (_S3, [away] * 20, 6),
        (_S3, [StoreError("cannot write it: AWS Error ACCESS_DENIED")], 0),
        (pyarrow.fs.LocalFileSystem(), [away], 0),
    ):
        pauses.clear()
        coming = iter(answers)

        def ask(coming: Iterator[object] = coming) -> object:
            if isinstance(answer := next(coming), Exception):
                raise answer
            return answer

        if "there" in answers:
            assert patiently(filesystem, ask) == "there"
        else:
            with pytest.raises(StoreError):
                patiently(filesystem, ask)
        assert pauses == [0.1 * 2**count for count in range(most)]


def test_reading_a_directory_is_an_error_and_not_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot read"):
        read_bytes(pyarrow.fs.LocalFileSystem(), str(tmp_path))


def test_an_error_is_one_line_without_credentials() -> None:
    with pytest.raises(StoreError) as caught, store_errors("write", "s3://K:S@b/a"):
        raise OSError("no route to s3://K:S@b\nsecond line")
    assert str(caught.value) == "cannot write s3://***@b/a: no route to s3://***@b"
