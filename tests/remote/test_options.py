"""What a caller may choose, what the environment says, and who we say we are."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from streaming.errors import CredentialsRefusedError, UnsupportedSourceError
from streaming.remote import RemoteOptions, open_remote
from streaming.remote.s3_session import S3Session
from tests.servers import clean_environment

if TYPE_CHECKING:
    from pathlib import Path

ENDPOINTS = ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


@pytest.fixture(autouse=True)
def _own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


def test_endpoint_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable that streaming users know comes first, then the AWS ones, the more special one before the other."""
    for name in reversed(ENDPOINTS):
        monkeypatch.setenv(name, f"http://{name.lower()}:9000")
        assert RemoteOptions.from_environment().endpoint_url == f"http://{name.lower()}:9000"
    assert RemoteOptions.from_environment(endpoint_url="http://given").endpoint_url == "http://given"
    assert RemoteOptions.from_environment(endpoint_url=None).endpoint_url == "http://s3_endpoint_url:9000"


def test_region_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both spellings of the region are read."""
    assert RemoteOptions.from_environment().region is None
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert RemoteOptions.from_environment().region == "eu-west-1"
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    assert RemoteOptions.from_environment().region == "eu-central-1"


@pytest.mark.parametrize(
    "wrong", [{"addressing": "host"}, {"attempts": 0}, {"read_timeout": 0.0}, {"total_timeout": -1.0}]
)
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    """Options that could not work are refused when they are made, not at the first read."""
    with pytest.raises(ValueError, match=r"addressing|attempts|timeouts"):
        RemoteOptions(**wrong)  # type: ignore[arg-type]


def test_payer_by_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comma list names buckets, with or without s3://."""
    monkeypatch.setenv("MOSAICML_STREAMING_AWS_REQUESTER_PAYS", "s3://one, two,")
    options = RemoteOptions()
    assert options.pays_for("s3://one/x/y")
    assert options.pays_for("s3://two")
    assert not options.pays_for("s3://on/x")
    assert not options.pays_for("/local")
    assert RemoteOptions(requester_pays=True).pays_for("s3://other/x")


def test_identity_of_each_source_of_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key that the AWS chain would use decides; the same key gives the same identity wherever it is written."""
    nobody = RemoteOptions().identity("s3://b/x")
    assert nobody["key"] is None
    (tmp_path / "config").write_text("[profile work]\naws_access_key_id = AKIDWORK\naws_secret_access_key = s\n")
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = AKIDHOME\naws_secret_access_key = s\n")
    home = RemoteOptions().identity("s3://b/x")["key"]
    work = RemoteOptions(profile="work").identity("s3://b/x")["key"]
    assert len({None, home, work}) == 3
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert RemoteOptions().identity("s3://b/x")["key"] == work
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDHOME")
    assert RemoteOptions().identity("s3://b/x")["key"] == home
    assert RemoteOptions(anonymous=True).identity("s3://b/x")["key"] is None
    assert "AKID" not in str(RemoteOptions().identity("s3://b/x"))


def test_identity_survives_a_broken_file(tmp_path: Path) -> None:
    """A credentials file that nobody can parse is no reason to fail before the store was asked."""
    (tmp_path / "credentials").write_bytes(b"no section\n\xff\xfe")
    assert RemoteOptions().identity("s3://b/x")["key"] is None


def test_identity_and_back() -> None:
    """Options made from an identity are the ones that it was made of."""
    options = RemoteOptions(endpoint_url="http://h:1", region="r", profile="p", anonymous=True, requester_pays=True)
    assert RemoteOptions.from_identity(options.identity("s3://b/x")) == options


def test_identity_without_boto3() -> None:
    """Asking who we are costs no import of boto3."""
    code = (
        "import sys; from streaming.remote import RemoteOptions, open_remote; "
        "RemoteOptions.from_environment().identity('s3://b/x'); open_remote('s3://bkt/x'); open_remote('/tmp'); "
        "print([m for m in ('boto3', 'botocore') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=clean_environment())
    assert answer.stdout.strip() == b"[]"


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ({}, "https://bkt.s3.us-east-1.amazonaws.com/"),
        ({"region": "eu-west-1"}, "https://bkt.s3.eu-west-1.amazonaws.com/"),
        ({"region": "cn-north-1"}, "https://bkt.s3.cn-north-1.amazonaws.com.cn/"),
        ({"addressing": "path", "region": "eu-west-1"}, "https://s3.eu-west-1.amazonaws.com/bkt/"),
        ({"endpoint_url": "http://127.0.0.1:9000"}, "http://127.0.0.1:9000/bkt/"),
        ({"endpoint_url": "https://minio.example"}, "https://minio.example/bkt/"),
        ({"endpoint_url": "https://r2.example", "addressing": "virtual"}, "https://bkt.r2.example/"),
    ],
)
def test_addressing(given: dict[str, str], base: str) -> None:
    """Amazon gets the bucket in the host name, everybody else in the path, unless told otherwise."""
    session = S3Session("bkt", RemoteOptions(anonymous=True, **given), None, None)  # type: ignore[arg-type]
    assert session.base in {base, base.replace(".s3.us-east-1.", ".s3.")}


def test_endpoint_of_a_profile(tmp_path: Path) -> None:
    """An endpoint that stands in the profile is used, path-style like any other that is not Amazon's."""
    (tmp_path / "config").write_text("[profile lab]\nendpoint_url = http://127.0.0.1:9001\nregion = lab\n")
    session = S3Session("bkt", RemoteOptions(profile="lab", anonymous=True), None, None)
    assert (session.base, session.region) == ("http://127.0.0.1:9001/bkt/", "lab")


def test_unknown_profile() -> None:
    """A profile that no file has is named."""
    with pytest.raises(CredentialsRefusedError, match="nosuch"):
        open_remote("s3://bkt/x", RemoteOptions(profile="nosuch")).read("y")


@pytest.mark.parametrize(
    "url", ["", "gs://b/x", "http://h/x", "s3://", "s3://b/../x", "s3:///x", "file://host/x", "s3://b/a//c"]
)
def test_sources_we_do_not_read(url: str) -> None:
    """A source that is not ours to read is refused at once, saying what would be."""
    with pytest.raises(UnsupportedSourceError, match=r"s3://|file:///|prefix"):
        open_remote(url)


@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}", "file://localhost{}"])
def test_directories_by_any_name(form: str, tmp_path: Path) -> None:
    """A path and a file URL name the same directory."""
    folder = tmp_path / "a b"
    folder.mkdir()
    (folder / "x").write_bytes(b"1")
    name = str(folder).replace(" ", "%20") if form.startswith("file") else str(folder)
    assert open_remote(form.format(name)).read("x")[0] == b"1"
