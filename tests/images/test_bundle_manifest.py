"""The manifest: canonical bytes, faults listed by path, and the questions it answers alone."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import BundleInvalid, SignatureInvalid
from core.image import BootFiles
from core.release import Release
from images.manifest import Blob, ImageInfo, Manifest, canonical, check_dates, moment, parse, stamp

ZERO = "0" * 64
GOOD = Manifest(
    release="MR95-1",
    compatible="acme-switch",
    architecture="x86_64",
    created="2026-09-02T01:00:00Z",
    expires="2027-09-02T01:00:00Z",
    image=ImageInfo(size=1 << 20, chunk_size=4096, content=ZERO, filesystem="ext4"),
    index=Blob(size=10, digest=ZERO),
    sections={"migrations": Blob(size=3, digest=ZERO)},
    installable_over=("MR90-1..MR95-9",),
    boot=BootFiles(kernel="/boot/vmlinuz-6.1", initrd="/boot/initrd.img-6.1", cmdline="quiet"),
    policy={"max_jump": 3},
)


def changed(**keys: object) -> bytes:
    return canonical(dataclasses.asdict(GOOD) | keys)


def test_round_trip() -> None:
    assert parse(GOOD.to_bytes()) == GOOD


def test_all_faults_at_once_by_path() -> None:
    data = dataclasses.asdict(GOOD) | {"surprise": 1, "lts": "yes", "boot": {"kernel": "../x"}}
    del data["compatible"]
    with pytest.raises(BundleInvalid) as caught:
        parse(canonical(data))
    told = "\n".join(caught.value.what)
    for path in ("surprise", "lts", "boot", "compatible"):
        assert path in told


@pytest.mark.parametrize(
    "change",
    [
        {"release": "95"},
        {"created": "yesterday"},
        {"expires": "2026-13-01T00:00:00Z"},
        {"installable_over": ["MR95..MR90"]},
        {"installable_over": "MR95"},
        {"minimum_agent": "new"},
        {"policy": {"max_jumps": 1}},
        {"required_free": -1},
        {"required_free": True},
        {"changelog": "\x1b[2J"},
        {"sections": {"../x": {"size": 1, "digest": ZERO}}},
        {"boot": {"kernel": "/boot/../../etc/shadow"}},
        {"boot": {"kernel": "/k", "cmdline": "a\nb"}},
        {"boot": {"kernel": "/k'; reboot"}},
        {"image": {"size": 1 << 60, "chunk_size": 4096, "content": ZERO, "filesystem": "ext4"}},
        {"image": {"size": 4096, "chunk_size": 1 << 30, "content": ZERO, "filesystem": "ext4"}},
        {"image": {"size": 4096, "chunk_size": 0, "content": ZERO, "filesystem": "ext4"}},
        {"index": {"size": 1 << 40, "digest": ZERO}},
    ],
    ids=str,
)
def test_refused(change: dict[str, object]) -> None:
    with pytest.raises(BundleInvalid):
        parse(changed(**change))


def test_newer_format_says_so() -> None:
    with pytest.raises(BundleInvalid, match="format 2"):
        parse(changed(format=2))


def test_not_canonical() -> None:
    for data in (json.dumps(dataclasses.asdict(GOOD)).encode(), GOOD.to_bytes().replace(b'"lts"', b'"lts":true,"lts"')):
        with pytest.raises(BundleInvalid, match="canonical"):
            parse(data)


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(BundleInvalid):
        parse(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(dataclasses.asdict(GOOD))), JSON)
def test_any_value_for_any_key(key: str, value: object) -> None:
    try:
        data = changed(**{key: value})
    except ValueError:  # broken Unicode has no canonical form
        return
    try:
        assert isinstance(parse(data), Manifest)
    except BundleInvalid:
        pass


def test_deep_nesting() -> None:
    for data in (b"[" * 100_000, b'{"policy":' * 5_000 + b"1" + b"}" * 5_000):
        with pytest.raises(BundleInvalid):
            parse(data)


@pytest.mark.parametrize(
    ("entry", "release", "allowed"),
    [
        ("MR95-1", "MR95-1", True),
        ("MR95-1", "MR95-2", False),
        ("MR95", "MR95-77", True),
        ("MR95", "MR96-0", False),
        ("MR90-2..MR95-9", "MR90-1", False),
        ("MR90-2..MR95-9", "MR92-50", True),
        ("MR90-2..MR95-9", "MR95-9", True),
        ("MR90-2..MR95-9", "MR95-10", False),
        ("MR90..MR95", "MR90-0", True),
        ("MR90..MR95", "MR95-1000", True),
        ("MR90..MR95", "MR89-9", False),
    ],
)
def test_allows(entry: str, release: str, allowed: bool) -> None:
    manifest = dataclasses.replace(GOOD, installable_over=(entry, "MR1-1"))
    assert manifest.allows(Release.parse(release)) is allowed


def test_allows_whatever_the_policy_does() -> None:
    assert dataclasses.replace(GOOD, installable_over=()).allows(Release.parse("MR1-1"))


@pytest.mark.parametrize(
    ("wanted", "version", "enough"),
    [
        ("0", "0.1.0", True),
        ("0.1", "0.1.0", True),
        ("0.1.0", "0.1", True),
        ("0.10", "0.9.9", False),
        ("1", "1.0rc1", True),
    ],
)
def test_agent_suffices(wanted: str, version: str, enough: bool) -> None:
    assert dataclasses.replace(GOOD, minimum_agent=wanted).agent_suffices(version) is enough


@given(st.integers(-3 * 366 * 86400, 3 * 366 * 86400))
def test_dates(seconds: int) -> None:
    """Installable from (nearly) when it was made until it expires, and at no other time."""
    now = moment(GOOD.created) + timedelta(seconds=seconds)
    valid = now + timedelta(hours=1) >= moment(GOOD.created) and now < datetime(2027, 9, 2, 1, tzinfo=UTC)
    try:
        check_dates(GOOD, now)
        assert valid
    except SignatureInvalid as error:
        assert not valid
        assert ("clock is wrong" in error.message) == (seconds < 0)


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9999, 1, 1)))
def test_stamp(at: datetime) -> None:
    assert moment(stamp(at.replace(tzinfo=UTC))) == at.replace(microsecond=0, tzinfo=UTC)


@pytest.mark.parametrize("key", [*dataclasses.asdict(GOOD), "boot.cmdline", "boot.initrd", "image.size"])
def test_every_key_is_always_there(key: str) -> None:
    data = dataclasses.asdict(GOOD)
    *within, last = key.split(".")
    del (data[within[0]] if within else data)[last]
    with pytest.raises(BundleInvalid) as caught:
        parse(canonical(data))
    assert caught.value.what == (f"{key}: missing",)
