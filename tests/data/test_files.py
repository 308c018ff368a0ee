"""Which files are a part of a data set: patterns, lists, names of parts, and what tools leave."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from fuzzing import fuzzed
from hypothesis import given
from hypothesis import strategies as st
from object_store import BUCKET, ObjectStore, object_store

from bend_ray.data import files as files_module
from bend_ray.data.files import Part, find_files, is_left_over
from bend_ray.errors import DataError

ENDINGS = (".parquet", ".pq")


@pytest.fixture(name="bucket")
def make_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    with object_store(monkeypatch) as store:
        yield store


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def names(*uris: str, part: Part | None = "train") -> list[str]:
    return [file.name for file in find_files(uris, part, ENDINGS, "dataset.train")]


def test_a_file_a_folder_a_pattern_and_a_list(tmp_path: Path) -> None:
    touch(tmp_path, "b.parquet", "a/0.parquet", "a/1.pq", "a/deep/2.PARQUET")
    assert names(str(tmp_path / "b.parquet")) == ["b.parquet"]
    assert names(str(tmp_path / "a")) == ["0.parquet", "1.pq", "deep/2.PARQUET"]
    assert names(f"{tmp_path}/a/*.p*") == ["0.parquet", "1.pq"]
    assert names(f"{tmp_path}/a/**/[0-1].p*") == ["0.parquet", "1.pq"]
    assert names(f"{tmp_path}/**/?.parquet") == ["a/0.parquet", "b.parquet"]
    assert names(f"{tmp_path}/b.parquet", f"{tmp_path}/a/1.pq") == ["b.parquet", "1.pq"]
    with pytest.raises(DataError, match=r"each file once, got .*b\.parquet twice"):
        names(f"{tmp_path}/*.parquet", f"{tmp_path}/b.parquet")
    with pytest.raises(DataError, match=r"nothing-\*: .* end in \.parquet, \.pq, got none"):
        names(f"{tmp_path}/nothing-*")


def test_a_file_that_is_called_as_a_pattern_is_itself(tmp_path: Path) -> None:
    touch(tmp_path, "a[1].parquet", "a1.parquet", "b/c*.parquet", "b/cd.parquet")
    assert names(f"{tmp_path}/a[1].parquet") == ["a[1].parquet"]
    assert names(f"{tmp_path}/b/c*.parquet") == ["c*.parquet"]


def notes(*uris: str) -> tuple[str, ...]:
    return find_files(uris, "train", ENDINGS, "dataset.train").notes


def test_of_a_folder_of_several_parts_each_takes_its_own(tmp_path: Path) -> None:
    shards = ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    touch(tmp_path, *shards, "test-00000-of-00001.parquet", "val-00000-of-00001.parquet")
    assert names(str(tmp_path)) == shards
    (note,) = notes(str(tmp_path))
    assert re.fullmatch(r"2 of 4 files at .* are named for the train part", note)
    assert names(str(tmp_path), part="test") == ["test-00000-of-00001.parquet"]
    assert names(str(tmp_path), part="validation") == ["val-00000-of-00001.parquet"]
    (tmp_path / "val-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"validation part at .*named for test and train; .*-\*"):
        names(str(tmp_path), part="validation")
    touch(tmp_path / "nested", "train/a.parquet", "test/a.parquet")
    assert names(str(tmp_path / "nested")) == ["train/a.parquet"]
    touch(tmp_path / "plain", "part-0.parquet", "latest.parquet")
    assert names(str(tmp_path / "plain")) == ["latest.parquet", "part-0.parquet"]
    # By a pattern, or by name, whatever it is called.
    assert names(f"{tmp_path}/test-*", part="train") == ["test-00000-of-00001.parquet"]


def test_what_tools_leave_behind_never_counts(tmp_path: Path) -> None:
    touch(
        tmp_path,
        *("a.parquet", "_temporary/0/a.parquet", ".a.parquet", "._a.parquet", "_SUCCESS"),
        *(".ipynb_checkpoints/a.parquet", "deep/_b.parquet", "Thumbs.db"),
    )
    assert names(str(tmp_path)) == ["a.parquet"]
    assert names(f"{tmp_path}/**/*.parquet") == ["a.parquet"]
    assert names(f"{tmp_path}/_temporary/**/*.parquet") == ["0/a.parquet"]
    assert names(f"{tmp_path}/_temporary/0") == ["a.parquet"]


def test_what_is_left_out_is_noted_with_its_number(tmp_path: Path) -> None:
    touch(tmp_path, "a.parquet", "b.csv", "c.csv", "README", ".hidden", "_SUCCESS")
    assert names(str(tmp_path)) == ["a.parquet"]
    (note,) = notes(str(tmp_path))
    assert note.endswith("do not end in .parquet, .pq: 2 of .csv, 1 of no ending")


components = st.text("ab_.1-", min_size=1, max_size=3).filter(lambda c: c.strip("."))
wild = st.sampled_from(["*", "?", "a*", "*1", "[ab]", "**", "a", "_*", ".*"])


def matches_one(part: str, pattern: str) -> bool:
    if pattern == "**":
        return not is_left_over(part)
    expression = pattern.replace(".", r"\.").replace("*", ".*").replace("?", ".")
    hidden = is_left_over(part) and not pattern.startswith(("_", "."))
    return bool(re.fullmatch(expression, part)) and not hidden


def brute(parts: list[str], pattern: list[str]) -> bool:
    """``**`` written out as any number of components, then one by one."""
    for counts in itertools.product(range(len(parts) + 1), repeat=pattern.count("**")):
        left = iter(counts)
        flat = [q for p in pattern for q in ([p] * next(left) if p == "**" else [p])]
        if len(flat) == len(parts) and all(map(matches_one, parts, flat)):
            return True
    return False


@given(
    parts=st.lists(components, min_size=1, max_size=4),
    pattern=st.lists(wild, min_size=1, max_size=4),
)
@fuzzed(300)
def test_a_pattern_matches_what_its_parts_match(parts: list[str], pattern: list[str]) -> None:
    assert files_module._matches(parts, pattern) == brute(parts, pattern)


def digest(*uris: str) -> str:
    return find_files(uris, None, ENDINGS, "dataset.train").digest()


@pytest.mark.parametrize("whole", [True, False])
def test_another_content_has_another_digest_and_another_spelling_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    if not whole:
        monkeypatch.setattr(files_module, "READ_WHOLE_BYTES", 1)
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "data/0.parquet", "data/1.parquet")
    first = digest("data")
    spellings = ["./data/", f"{tmp_path}/data", f"file://{tmp_path}/data", "data/../data"]
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for spelling in [*spellings, "link", "data/*.parquet"]:
        assert digest(spelling) == first
    assert digest("data/0.parquet", "data/1.parquet") == first
    assert digest("data/1.parquet", "data/0.parquet") != first
    file = tmp_path / "data/0.parquet"
    changed = file.read_text().swapcase()
    file.write_text(changed)
    os.utime(file, ns=(1, 1))
    assert digest("data") != first
    touch(tmp_path, "data/0.parquet", "data/2.parquet")
    assert digest("data") != first


def test_a_copy_of_the_same_files_is_the_same_data(tmp_path: Path) -> None:
    touch(tmp_path, "a/0.parquet", "a/1.parquet")
    for name in ("0", "1"):
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / f"b/{name}.parquet").write_bytes((tmp_path / f"a/{name}.parquet").read_bytes())
    assert digest(str(tmp_path / "a")) == digest(str(tmp_path / "b"))


@pytest.mark.slow
def test_objects_are_told_apart_by_their_etags(bucket: ObjectStore) -> None:
    client = boto3.client("s3")

    def put(key: str, body: bytes) -> None:
        client.put_object(Bucket=BUCKET, Key=key, Body=body)

    put("set/train-0.parquet", b"one")
    put("set/train-1.parquet", b"two")
    put("set/test-0.parquet", b"six")
    uri = f"s3://{BUCKET}/set?region=us-east-1"
    assert names(uri) == ["train-0.parquet", "train-1.parquet"]
    assert names(f"s3://{BUCKET}/set/train-*?region=us-east-1") == [
        "train-0.parquet",
        "train-1.parquet",
    ]
    first = digest(uri)
    put("set/train-0.parquet", b"one")
    assert digest(uri) == first
    # At the same second, and as long.
    put("set/train-0.parquet", b"eno")
    assert digest(uri) != first


def test_files_of_a_part_are_in_one_place(tmp_path: Path) -> None:
    touch(tmp_path, "a.parquet")
    assert names(str(tmp_path / "a.parquet"), part=None) == ["a.parquet"]
    with pytest.raises(DataError, match="cannot read"):
        names(str(tmp_path / "a.parquet"), "s4://bucket/b.parquet")


def test_names_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    os.makedirs(os.fsencode(tmp_path) + b"/caf\xe9")
    with open(os.fsencode(tmp_path) + b"/caf\xe9/a.parquet", "wb"):
        pass
    with pytest.raises(DataError, match="utf-8"):
        names(str(tmp_path))
