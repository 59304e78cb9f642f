"""Bundles: build, inspect, verify, and keys to sign them with."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Annotated

import typer

from updater.cli.context import interruptible, print_json, settings

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make and look into release bundles.")


@app.command()
def build(
    output: Annotated[Path, typer.Argument(help="The bundle to make.")],
    release: Annotated[str, typer.Option(help="Release id, such as MR96-1.")],
    compatible: Annotated[str, typer.Option(help="Which kind of node it is for; node.toml says the same.")],
    key: Annotated[list[str], typer.Option(help="Signing key: a file, or hsm:… . Several are allowed.")],
    image: Annotated[Path | None, typer.Option(help="Input: a filesystem image (ext4, xfs, …).")] = None,
    tree: Annotated[Path | None, typer.Option(help="Input: a directory that holds a root filesystem.")] = None,
    package: Annotated[list[str] | None, typer.Option(help="Input: RPM packages, with --repository.")] = None,
    repository: Annotated[list[str] | None, typer.Option(help="RPM repository: URL or directory.")] = None,
    filesystem: Annotated[str, typer.Option(help="Filesystem made from a tree or packages.")] = "ext4",
    size: Annotated[int | None, typer.Option(help="Bytes of that filesystem.", show_default="what it needs")] = None,
    kernel: Annotated[str | None, typer.Option(help="Path of the kernel in the image.", show_default="newest")] = None,
    initrd: Annotated[str | None, typer.Option(help="Path of the initrd.", show_default="newest")] = None,
    cmdline: Annotated[str, typer.Option(help="Kernel arguments that the release needs.")] = "",
    architecture: Annotated[
        str | None, typer.Option(help="Of the machines it runs on.", show_default="this machine's")
    ] = None,
    lts: Annotated[bool, typer.Option("--lts", help="A long-term release.")] = False,
    expires: Annotated[str, typer.Option(help="UTC time after which nodes refuse it, 2027-01-31T00:00:00Z.")] = "",
    over: Annotated[list[str] | None, typer.Option(help="Releases it may be installed over: MR94, MR90..MR95.")] = None,
    minimum_agent: Annotated[str, typer.Option(help="Oldest agent that may install it.")] = "0",
    required_free: Annotated[int, typer.Option(help="Bytes that must be free on the data partition.")] = 0,
    changelog: Annotated[Path | None, typer.Option(help="A text file.")] = None,
    migrations: Annotated[Path | None, typer.Option(help="Directory of data migrations.")] = None,
    templates: Annotated[Path | None, typer.Option(help="Directory of configuration templates.")] = None,
    level: Annotated[int, typer.Option(help="zstd level.", min=1, max=19)] = 9,
) -> None:
    """Build a signed release bundle from an image, a directory tree, or RPM packages. Same input, same bytes.

    Example: updater bundle build mr96-1.bundle --release MR96-1 --compatible acme-switch --tree root/ --key release.pem
    """
    from dataclasses import replace

    from core.errors import ConfigError
    from core.report import Report, json_lines
    from images import build as builder
    from images.keys import load_signer
    from images.manifest import moment
    from migrations.catalogue import load
    from updater.cli.screen import Screen
    from updater.pristine import listed

    if migrations is not None:
        load(migrations)
    sections = {"migrations": migrations, "templates": templates}
    given = {name: path for name, path in sections.items() if path is not None}
    try:
        spec = builder.BuildSpec(
            release=release,
            compatible=compatible,
            image=image,
            tree=tree,
            packages=tuple(package or ()),
            repositories=tuple(repository or ()),
            filesystem=filesystem,
            size=size,
            kernel=kernel,
            initrd=initrd,
            cmdline=cmdline,
            lts=lts,
            architecture=architecture or platform.machine(),
            expires=moment(expires) if expires else None,
            installable_over=tuple(over or ()),
            minimum_agent=minimum_agent,
            required_free=required_free,
            changelog=changelog.read_text(encoding="utf-8") if changelog else "",
            sections=given,
            level=level,
        )
    except (ValueError, OSError) as error:
        raise ConfigError("the bundle cannot be built as asked", what=str(error)) from error
    with interruptible(), Screen() as screen:
        signers = [load_signer(uri) for uri in key]
        report = Report(json_lines() if settings.json else screen.sink)
        with listed(tree, image, report) as files:
            made = builder.build(replace(spec, sections=given | files), output, signers, report)
        _tell(made)


@app.command()
def inspect(source: Annotated[str, typer.Argument(metavar="BUNDLE", help="Path or http(s) URL.")]) -> None:
    """Show what a bundle says of itself. Signatures are listed, not checked: see `updater bundle verify`.

    Example: updater bundle inspect mr96-1.bundle --json
    """
    with interruptible():
        _tell(source)


@app.command()
def verify(
    source: Annotated[str, typer.Argument(metavar="BUNDLE", help="Path or http(s) URL.")],
    key: Annotated[
        list[Path] | None, typer.Option(help="Public keys to trust.", show_default="those of node.toml")
    ] = None,
    threshold: Annotated[int | None, typer.Option(help="How many of them must have signed.")] = None,
) -> None:
    """Check signatures and dates, and every byte of a bundle.

    Example: updater bundle verify mr96-1.bundle --key release.pub
    """
    from core.report import Report, json_lines
    from images.keys import load_trust
    from images.read import Bundle
    from updater.cli.context import config_path
    from updater.cli.screen import Screen
    from updater.node_toml import load_node

    trust = load_node(config_path()).trust if not key else None
    paths, needed = (trust.keys, trust.threshold) if trust else (tuple(key or ()), 1)
    with interruptible(), Screen() as screen:
        report = Report(json_lines() if settings.json else screen.sink)
        with Bundle.open(source, load_trust(paths, threshold or needed)) as bundle, report.phase("verify") as said:
            bundle.verify_all(report)
            said["text"] = f"{bundle.manifest.release} is whole, signed by {', '.join(bundle.signers)}"
            said["signers"] = list(bundle.signers)


@app.command()
def key(
    path: Annotated[Path, typer.Argument(help="Where the private key goes; the public one beside it, .pub.")],
) -> None:
    """Make a pair of Ed25519 keys to sign bundles with. Never overwrites.

    Example: updater bundle key release.pem
    """
    from images.keys import generate

    private, public = generate(path)
    print(f"private key {private}   keep it away from servers")
    print(f"public key  {public}   goes to every node, under [trust] keys in node.toml")


def _tell(source: str | Path) -> None:
    from dataclasses import asdict

    from images.read import Bundle
    from updater.staging import size

    with Bundle.inspect(source) as bundle:
        found, image = bundle.manifest, bundle.image
        if settings.json:
            print_json(asdict(found) | {"stored": image.stored_bytes(), "key_ids": list(bundle.key_ids)})
            return
        print(f"{found.release}{' (LTS)' if found.lts else ''} for {found.compatible}, {found.architecture}")
        print(f"  created      {found.created}{f', expires {found.expires}' if found.expires else ''}")
        print(f"  image        {found.image.filesystem}, {size(image.size)} ({size(image.stored_bytes())} stored)")
        print(f"  content      {found.image.content}")
        print(f"  boot         {found.boot.kernel} {found.boot.initrd or ''} {found.boot.cmdline}".rstrip())
        print(f"  over         {', '.join(found.installable_over) or 'what the release policy allows'}")
        print(f"  needs        agent {found.minimum_agent}, {size(found.required_free)} free on the data partition")
        print(f"  sections     {', '.join(sorted(found.sections)) or 'none'}")
        print(f"  signatures   by {', '.join(each[:12] for each in bundle.key_ids) or 'nobody'} (not checked here)")
        for line in found.changelog.splitlines():
            print(f"  | {line}")
