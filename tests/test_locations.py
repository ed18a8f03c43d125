from __future__ import annotations

from pathlib import Path

import pytest

from tunelab.errors import InputError
from tunelab.locations import folder, is_uri, name_of, parse


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("runs", Path("runs")),
        ("/data/a b", Path("/data/a b")),
        ("file:///data/a%20b", Path("/data/a b")),
        ("~", Path.home()),
        ("C", Path("C")),
        ("s3://bucket", "s3://bucket"),
        ("S3://bucket/prefix//", "s3://bucket/prefix"),
        ("s3://bucket/a/b c", "s3://bucket/a/b c"),
        ("gs://bucket/x", "gs://bucket/x"),
        ("abfs://box@account.dfs.core.windows.net/x", "abfs://box@account.dfs.core.windows.net/x"),
        ("sftp://me@host:2222/runs", "sftp://me@host:2222/runs"),
    ],
)
def test_a_place_is_a_folder_or_a_store(text: str, found: Path | str) -> None:
    assert parse(text) == found
    assert is_uri(text) == ("://" in text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://KEY:hunter2hunter2@bucket/x",
        "s3://KEY:hunter2/hunter2@bucket/x",
        "s3://hunter2hunter2@bucket/x",
        "s3://KEY:hunter2hunter2@bucket",
        "s3://KEY%3Ahunter2hunter2%40bucket/x",
        "gs://a:hunter2hunter2@b/c",
        "sftp://me:hunter2hunter2@host/x",
        "abfs://box:hunter2hunter2@account/x",
        "s3://bucket/x?password=hunter2hunter2",
        "s3://bucket/x?key=A&secret=hunter2hunter2",
        "s3://bucket/x#token=hunter2hunter2",
        "file://me:hunter2hunter2@host/x",
        "http://me:hunter2hunter2@host/x",
        "s3://KEY:hunter2hunter2",
    ],
)
def test_credentials_are_refused_and_not_told(text: str) -> None:
    with pytest.raises(InputError, match=r"credentials.*AWS_ACCESS_KEY_ID") as refused:
        parse(text)
    assert "hunter2" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("s3://", "must be a URI such as"),
        ("s3:///x", "must be a URI such as"),
        ("s3://b/../x", "without empty parts"),
        ("s3://b/a//x", "without empty parts"),
        ("s3://b/\nx", "must be a URI such as"),
        ("s3://b/x?versionId=3", "without \\? and #"),
        ("https://host/x", "it can only be read"),
        ("memory://x", "it is gone when the process ends"),
        ("simplecache::s3://b/x", "without ::"),
        ("s3://[b/x", "is no URI"),
        ("s3:bucket/x", "s3:... is no URI, which has //, such as s3://BUCKET/PREFIX"),
        ("gs:/hunter2@bucket/x", "gs:... is no URI, which has //"),
        ("File:/data", "File:... is no URI, which has //"),
    ],
)
def test_what_is_no_place_for_a_study_is_refused(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why) as refused:
        parse(text, "the study")
    assert str(refused.value).startswith("the study ")


def test_a_store_is_no_folder(tmp_path: Path) -> None:
    assert folder(str(tmp_path), "--study") == folder(tmp_path.as_uri(), "--study") == tmp_path
    for given in ("s3://bucket/x", Path("s3://bucket/x"), "s3://KEY:hunter2@bucket/x"):
        with pytest.raises(InputError, match=r"^--study s3:") as refused:
            folder(given, "--study")
        assert "hunter2" not in str(refused.value)


def test_a_study_has_the_last_part_as_its_name() -> None:
    assert name_of("s3://bucket/prefix/arch-1") == "arch-1"
