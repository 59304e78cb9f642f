"""Keys, signatures, thresholds, and envelopes from hostile hands."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import BundleInvalid, ConfigError, SignatureInvalid
from images import keys
from images.manifest import canonical

Pairs = dict[str, tuple[Path, Path]]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    home = tmp_path_factory.mktemp("keys")
    return {name: keys.generate(home / f"{name}.pem") for name in ("one", "two", "three")}


def signed(pairs: Pairs, *names: str, payload: bytes = b"payload") -> bytes:
    return keys.sign(payload, [keys.load_signer(f"file:{pairs[name][0]}") for name in names])


def trust(pairs: Pairs, *names: str, threshold: int = 1) -> keys.Trust:
    return keys.load_trust([pairs[name][1] for name in names], threshold)


def test_generate(tmp_path: Path) -> None:
    private, public = keys.generate(tmp_path / "release.pem")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert public == tmp_path / "release.pub"
    before = private.read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        keys.generate(private)
    public.unlink()
    with pytest.raises(ConfigError, match="exists already"):
        keys.generate(private)
    assert private.read_bytes() == before
    assert not public.exists()


def test_signers_are_named(pairs: Pairs) -> None:
    envelope = keys.parse(signed(pairs, "two", "one"))
    assert envelope.content() == b"payload"
    assert keys.verify(envelope, trust(pairs, "one", "two", "three", threshold=2)) == ("one", "two")
    assert keys.verify(envelope, trust(pairs, "two", "three")) == ("two",)


@pytest.mark.parametrize(
    ("signing", "trusted", "threshold"),
    [(["one"], ["two"], 1), (["one"], ["one", "two"], 2), (["one", "three"], ["one", "two"], 2)],
)
def test_too_few(pairs: Pairs, signing: list[str], trusted: list[str], threshold: int) -> None:
    with pytest.raises(SignatureInvalid) as caught:
        keys.verify(keys.parse(signed(pairs, *signing)), trust(pairs, *trusted, threshold=threshold))
    told = "\n".join(caught.value.what)
    assert f"trusted here: {', '.join(trusted)}" in told
    assert caught.value.next


def test_no_signature_at_all(pairs: Pairs) -> None:
    envelope = json.loads(signed(pairs, "one")) | {"signatures": []}
    with pytest.raises(SignatureInvalid):
        keys.verify(keys.parse(canonical(envelope)), trust(pairs, "one"))


def test_signature_of_another_payload(pairs: Pairs) -> None:
    envelope = json.loads(signed(pairs, "one")) | {"payload": "cGF5bG9hZDI="}
    with pytest.raises(SignatureInvalid, match="one is wrong"):
        keys.verify(keys.parse(canonical(envelope)), trust(pairs, "one"))


def test_same_key_cannot_count_twice(pairs: Pairs, tmp_path: Path) -> None:
    twin = tmp_path / "twin.pub"
    twin.write_bytes(pairs["one"][1].read_bytes())
    with pytest.raises(ConfigError, match="twice"):
        keys.load_trust([pairs["one"][1], twin], 2)
    envelope = json.loads(signed(pairs, "one"))
    envelope["signatures"] *= 2
    with pytest.raises(BundleInvalid):
        keys.parse(canonical(envelope))


@pytest.mark.parametrize("threshold", [0, -1, 2])
def test_impossible_threshold(pairs: Pairs, threshold: int) -> None:
    with pytest.raises(ConfigError):
        trust(pairs, "one", threshold=threshold)


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_bad_key_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.pem"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        keys.load_trust([path])
    with pytest.raises(ConfigError):
        keys.load_signer(str(path))
    with pytest.raises(ConfigError):
        keys.load_signer(str(tmp_path / "missing"))


def test_ecdsa_keys_are_trusted_too(tmp_path: Path) -> None:
    """What an HSM signs with."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private, public = tmp_path / "hsm.pem", tmp_path / "hsm.pub"
    private.write_bytes(
        key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(b"secret"))
    )
    public.write_bytes(key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo))
    envelope = keys.sign(b"x", [keys.load_signer(str(private), ask=lambda what: "secret")])
    assert keys.verify(keys.parse(envelope), keys.load_trust([public])) == ("hsm",)
    with pytest.raises(ConfigError):
        keys.load_signer(str(private), ask=lambda what: "wrong")


def test_hsm_without_its_extra_or_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYKCS11LIB", raising=False)
    with pytest.raises(ConfigError) as caught:
        keys.load_signer("hsm:2?label=x", ask=lambda what: "0000")
    try:
        import pkcs11  # noqa: F401
    except ImportError:
        assert "updater[hsm]" in caught.value.next[0]


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(BundleInvalid):
        keys.parse(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["sig", "keyid", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.sampled_from(["payload", "payloadType", "signatures", "new"]), JSON)
def test_any_value_for_any_key(pairs: Pairs, key: str, value: object) -> None:
    try:
        raw = canonical(json.loads(signed(pairs, "one")) | {key: value})
    except ValueError:
        return
    try:
        keys.verify(keys.parse(raw), trust(pairs, "one"))
        raise AssertionError("accepted")
    except (BundleInvalid, SignatureInvalid):
        pass


@given(st.data())
def test_any_bit_of_the_envelope(pairs: Pairs, data: st.DataObject) -> None:
    """Both must sign: then no bit at all may change."""
    raw = bytearray(signed(pairs, "one", "two"))
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises((BundleInvalid, SignatureInvalid)):
        keys.verify(keys.parse(bytes(raw)), trust(pairs, "one", "two", threshold=2))


@pytest.mark.parametrize("name", [".", "/"])
def test_a_directory_is_no_name_for_a_key(name: str) -> None:
    with pytest.raises(ConfigError, match="no name for a key"):
        keys.generate(Path(name))
