"""Keys, signatures and trust: DSSE envelopes made and checked with securesystemslib."""

from __future__ import annotations

import json
import os
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from core.errors import BundleInvalid, ConfigError, SignatureInvalid
from core.schema import SchemaError, structure
from images.manifest import canonical, printable

if TYPE_CHECKING:
    from securesystemslib.signer import Key, Signer

PAYLOAD_TYPE: Final = "application/vnd.updater.manifest+json"
_MAX_SIGNATURES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Keys whose word counts, by name (the name of their file without its ending), and how many of them must sign."""

    keys: dict[str, Key]
    threshold: int = 1


def generate(private: Path, public: Path | None = None) -> tuple[Path, Path]:
    """Make an Ed25519 key pair: `private` (PKCS#8 PEM, mode 0600) and `public` (PEM; default: `private` with the ending
    ``.pub``). Never overwrites. Raises ConfigError. Returns both paths.
    """
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not private.name:
        raise ConfigError(f"{private} is no name for a key", next="updater bundle key release.pem")
    public = public or private.with_suffix(".pub")
    if public == private:
        raise ConfigError("private and public key cannot be the same file", what=str(private))
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    open_ = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    if public.exists():
        raise ConfigError(
            f"{public} exists already; keys are never overwritten", state="it is as it was", next="choose another name"
        )
    _create(private, secret, 0o600)
    try:
        _create(public, open_, 0o644)
    except ConfigError:
        private.unlink()
        raise
    return private, public


def _create(path: Path, data: bytes, mode: int) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError as error:
        raise ConfigError(
            f"{path} exists already; keys are never overwritten", state="it is as it was", next="choose another name"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written",
            what=error.strerror or str(error),
            state="no key was made there",
            next=f"ls -ld {path.parent}",
        ) from error
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)


def load_trust(paths: Iterable[Path], threshold: int = 1) -> Trust:
    """Read public keys (PEM: Ed25519, ECDSA or RSA). Raises ConfigError when one cannot be read, two are named alike or
    are the same key (it would count twice), or there are fewer than `threshold`.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    keys: dict[str, Key] = {}
    for path in paths:
        try:
            key = SSlibKey.from_crypto(load_pem_public_key(path.read_bytes()))
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise ConfigError(
                f"trusted key {path} cannot be read",
                what=str(error)[:300],
                state="nothing was changed",
                next="correct trust.keys in node.toml (or --key), or put the key there",
            ) from error
        twin = next((name for name, other in keys.items() if other.keyid == key.keyid), None)
        if path.stem in keys or twin is not None:
            raise ConfigError(f"trusted key {path} is there twice", what=f"as {twin or path.stem} too")
        keys[path.stem] = key
    if threshold < 1 or len(keys) < threshold:
        raise ConfigError(
            f"{threshold} signature(s) are demanded, but {len(keys)} key(s) are trusted",
            state="nothing was changed",
            next="correct trust.keys or trust.threshold in node.toml",
        )
    return Trust(keys=keys, threshold=threshold)


def load_signer(uri: str, ask: Callable[[str], str] | None = None) -> Signer:
    """Something that signs: ``file:PATH`` or a plain path (PKCS#8 PEM), or ``hsm:[KEYID][?label=TOKEN]``
    (PKCS#11, its module named by the environment variable PYKCS11LIB). `ask` is asked for a secret by its name
    (default: on the terminal). Raises ConfigError.
    """
    if uri.startswith("hsm:"):
        return _load_hsm(uri, ask or _ask_terminal)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    path = Path(uri.removeprefix("file:"))
    try:
        raw = path.read_bytes()
        secret = (ask or _ask_terminal)(f"password of {path.name}").encode() if b"ENCRYPTED" in raw else None
        return CryptoSigner(load_pem_private_key(raw, secret))
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"signing key {path} cannot be used", what=str(error)[:300], next="updater bundle key PATH    makes one"
        ) from error


def _load_hsm(uri: str, ask: Callable[[str], str]) -> Signer:
    from urllib.parse import parse_qsl, urlsplit

    from securesystemslib.exceptions import UnsupportedLibraryError
    from securesystemslib.signer import HSMSigner

    try:
        parts = urlsplit(uri)
        number = int(parts.path) if parts.path else None
        found, key = HSMSigner.import_(number, dict(parse_qsl(parts.query)).get("label"), ask)
        return HSMSigner.from_priv_key_uri(found, key, ask)
    except UnsupportedLibraryError as error:
        raise ConfigError(
            "keys in an HSM need an extra that is not installed", what=str(error), next="pip install 'updater[hsm]'"
        ) from error
    except Exception as error:  # PKCS#11 modules raise what they like
        raise ConfigError(f"the HSM key {uri} cannot be used", what=f"{type(error).__name__}: {error}"[:300]) from error


def _ask_terminal(what: str) -> str:
    from getpass import getpass

    return getpass(f"{what}: ")


def sign(payload: bytes, signers: Sequence[Signer]) -> bytes:
    """A DSSE envelope in canonical JSON around the payload, signed by each signer."""
    from securesystemslib.dsse import Envelope

    if not signers:
        raise ConfigError("a bundle needs at least one signature", next="name a key with --key")
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    for signer in signers:
        try:
            envelope.sign(signer)
        except Exception as error:  # a token that was pulled out, a wrong PIN: whatever its module raises
            raise ConfigError("signing failed", what=f"{type(error).__name__}: {error}"[:300]) from error
    return canonical(envelope.to_dict())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Signature:
    keyid: str
    sig: str

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{8,128}", self.keyid):
            raise ValueError("keyid is not a key's hash in hex")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """An envelope taken apart, nothing of it verified yet. The names are DSSE's."""

    payload: str
    payloadType: str
    signatures: tuple[_Signature, ...]

    def content(self) -> bytes:
        """The payload's bytes. Unverified."""
        return b64decode(self.payload, validate=True)


def parse(raw: bytes) -> Signed:
    """Take an envelope apart without believing it. Raises BundleInvalid unless it is well-formed and canonical: then no
    bit of it can change without a signature, the payload, or the number of signatures changing.
    """
    try:
        data: Any = json.loads(raw)
        signed = structure(data, Signed)
        if canonical(data) != raw:
            raise ValueError("the JSON is not in canonical form")
        for text in (signed.payload, *(each.sig for each in signed.signatures)):
            if b64encode(b64decode(text, validate=True)).decode() != text:
                raise ValueError("base64 is not in canonical form")
    except SchemaError as error:
        what = [printable(fault) for fault in error.faults[:20]]
        raise BundleInvalid("the signature envelope is malformed", what=what) from error
    except (ValueError, RecursionError) as error:
        raise BundleInvalid("the signature envelope is malformed", what=str(error)[:200]) from error
    if signed.payloadType != PAYLOAD_TYPE:
        raise BundleInvalid("this is not a release bundle's envelope", what=f"its type is {signed.payloadType!r:.100}")
    if len(signed.signatures) > _MAX_SIGNATURES or len({each.keyid for each in signed.signatures}) < len(
        signed.signatures
    ):
        raise BundleInvalid("the signature envelope is malformed", what="too many signatures, or two by one key")
    return signed


def verify(signed: Signed, trust: Trust) -> tuple[str, ...]:
    """Names of all trusted keys that signed. Raises SignatureInvalid when they are fewer than the threshold, or when a
    signature in the name of a trusted key is wrong (then somebody or something changed the bundle).
    """
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
    from securesystemslib.signer import Signature

    names = {key.keyid: name for name, key in trust.keys.items()}
    signed_by: list[str] = []
    wrong: list[str] = []
    unknown: list[str] = []
    message = Envelope(signed.content(), signed.payloadType, {}).pae()
    for each in signed.signatures:
        name = names.get(each.keyid)
        if name is None:
            unknown.append(each.keyid[:12])
            continue
        try:
            trust.keys[name].verify_signature(Signature(each.keyid, b64decode(each.sig).hex()), message)
            signed_by.append(name)
        except (UnverifiedSignatureError, VerificationError):
            wrong.append(name)
    if wrong or len(signed_by) < max(trust.threshold, 1):
        raise SignatureInvalid(
            f"the signature of {', '.join(wrong)} is wrong"
            if wrong
            else f"{len(signed_by)} of the {trust.threshold} signature(s) that are needed",
            what=[
                f"signed by trusted keys: {', '.join(sorted(signed_by)) or 'none'}",
                f"signed by other keys: {', '.join(sorted(unknown)) or 'none'}",
                f"trusted here: {', '.join(sorted(trust.keys))} (threshold {trust.threshold})",
            ],
            next=[
                "get the bundle again from where it is released" if wrong else "have it signed with a trusted key",
                "or, if the key is right, add it to trust.keys in node.toml",
            ][: 1 if wrong else 2],
        )
    return tuple(sorted(signed_by))
