"""Names of places: each means what it says to other tools too, or is refused in one line."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import boto3
import pyarrow.fs
import pytest
from fuzzing import fuzzed
from hypothesis import given
from hypothesis import strategies as st
from object_store import BUCKET, object_store

from bend_ray.artifacts.store import Store
from bend_ray.errors import StoreError
from bend_ray.storage.filesystems import read_bytes, resolve, write_bytes
from bend_ray.storage.uris import canonical, joined, names_variable

AWKWARD = (
    "a b|ü|e\u0301|😀|a#b|100%|%20|a?b=c|a&b|a+b|a=b|[x]|{y}|'q'|\"|a;b|a:b|a@b|a!b|~|^|\\|<|*|..."
)
names = st.sampled_from(AWKWARD.split("|")) | st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="/"),
    min_size=1,
    max_size=6,
)
parts = names.filter(lambda name: name.strip() and name not in (".", ".."))


@given(path=st.lists(parts, min_size=1, max_size=3), slashes=st.sampled_from(["", "/", "//"]))
@fuzzed(200)
def test_any_name_is_one_place_however_it_is_written(path: list[str], slashes: str) -> None:
    query = "?region=us-east-1"
    escaped = f"s3://{BUCKET}/{'/'.join(quote(part, safe='') for part in path)}"
    place = canonical(escaped + query)
    assert canonical(place) == place
    assert canonical(f"S3{escaped[2:]}{slashes}{query}") == place
    assert resolve(escaped + query)[1] == "/".join([BUCKET, *path])
    assert joined(f"s3://{BUCKET}{slashes}{query}", *path) == place
    raw = "/".join(path)
    if not set("%?") & set(raw) and not names_variable(raw):
        assert canonical(f"s3://{BUCKET}/{raw}{query}") == place


@given(path=st.lists(parts, min_size=1, max_size=3))
@fuzzed(100)
def test_a_local_place_is_a_path_however_it_is_written(path: list[str]) -> None:
    expected = os.path.join("/", *path)
    assert canonical(f"file://{quote(expected)}/") == expected
    assert resolve(f"file:///x/..{quote(expected)}")[1] == expected
    if not names_variable(expected) and "://" not in expected:
        assert canonical(f"{expected}/") == canonical(f"/x/../{expected}") == expected


@pytest.fixture(scope="module")
def bucket() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched, object_store(patched):
        yield


@pytest.mark.slow
@given(path=st.lists(parts, min_size=1, max_size=2), name=parts)
@fuzzed(30)
def test_other_tools_find_what_is_written_under_any_name(
    bucket: None, path: list[str], name: str
) -> None:
    filesystem, place = resolve(joined(f"s3://{BUCKET}", *path))
    write_bytes(filesystem, f"{place}/{name}", b"content")
    key = "/".join([*path, name])
    assert boto3.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read() == b"content"
    listed = filesystem.get_file_info(pyarrow.fs.FileSelector(place, recursive=True))
    assert [info.path for info in listed] == [f"{BUCKET}/{key}"]
    assert read_bytes(filesystem, f"{place}/{name}") == b"content"
    filesystem.delete_dir(f"{BUCKET}/{path[0]}")


@pytest.mark.slow
def test_a_store_of_an_awkward_name_is_the_same_in_another_process(bucket: None) -> None:
    store = Store(f"s3://{BUCKET}/my runs/#1?region=us-east-1")
    assert store.uri == f"s3://{BUCKET}/my%20runs/%231?region=us-east-1"
    store.directory("seeds", "a").write_json("x.json", 1)
    again = pickle.loads(pickle.dumps(store))
    assert (again.uri, again.path) == (store.uri, f"{BUCKET}/my runs/#1")
    assert again.directory("seeds", "a").read_json("x.json") == 1


REFUSED = {
    "": "expected a path or file://, s3://",
    "  ": "expected a path or file://, s3://",
    "a\0b": r"in UTF-8 and on one line; got 'a\\x00b'",
    "caf\udce9": r"in UTF-8 and on one line; got 'caf\\udce9'",
    "s3://b/a\nb": "in UTF-8 and on one line",
    "s3://b/a%0Ab": "expected escapes of UTF-8, and no ends",
    "s3://b/%ff": "expected escapes of UTF-8,",
    "file:///tmp/%ff": "expected escapes of UTF-8,",
    "s3://b/100%": "expected two hexadecimal digits after %; write %25 for one in a name",
    "file:///tmp/100%": "write %25 for one in a name",
    "s3://b/a%2Fb": "expected no %2F",
    "s3://b//runs?region=x": r"part that is empty, . or ..; got .*: did you mean 's3://b/runs\?reg",
    "s3://b/a/./c": "did you mean 's3://b/a/c'",
    "gs://b/a/../c": "expected no part that is empty",
    "s3://b/a?b": r"expected \?name=value&... after the path; write %3F for \? in a name",
    "s3://b/a?region": r"expected \?name=value",
    "s3://b/a?region=": r"expected \?name=value",
    "s3://b/a?region=x&region=y": "expected each parameter once",
    "s3://b/a?color=red": "Unexpected query parameter in S3 URI: 'color'",
    "file:///tmp/a?b": r"expected no \? in a file URI; write %3F",
    "file://host/tmp": "did you mean 'file:///host/tmp'",
    "file:tmp": "did you mean 'file:///tmp'",
    "s3:///a": "names no bucket",
    "s3://b:9000/a": "expected a bucket without a port; endpoint_override",
    "s3://b#1/a": "expected a bucket's name",
    "s3://ü/a": "expected a bucket's name",
    "$HOME/runs": "expected no variable, as they are not expanded here; write it out; got '\\$HOME",
    "s3://${BUCKET}/a": "expected no variable",
    "/data/$(RUN)": "expected no variable",
}


@pytest.mark.parametrize(("uri", "complaint"), REFUSED.items())
def test_what_nobody_can_mean_is_refused_in_one_line(uri: str, complaint: str) -> None:
    with pytest.raises(StoreError, match=complaint) as raised:
        resolve(uri)
    assert len(str(raised.value).splitlines()) == 1
    assert str(raised.value).isascii() or "ü" in uri


@given(
    uri=st.sampled_from(["s3://", "gs://", "file://", "abfs://", ""]).flatmap(
        lambda scheme: st.text("ab:/?#&=%@. $\\é\udce9\n2F", max_size=12).map(scheme.__add__)
    )
)
@fuzzed(200)
def test_any_text_is_a_place_or_refused_in_one_line(uri: str) -> None:
    try:
        place = canonical(uri)
    except StoreError as error:
        message = str(error)
    else:
        message = place
        assert canonical(place) == place
        assert canonical(joined(uri, "a b")) == joined(place, "a b")
    assert len(message.splitlines()) == 1
    message.encode()


def test_a_dollar_of_a_name_is_written_as_an_escape(tmp_path: Path) -> None:
    filesystem, path = resolve(f"file://{tmp_path}/%24HOME")
    write_bytes(filesystem, f"{path}/a", b"")
    assert [each.name for each in tmp_path.iterdir()] == ["$HOME"]
