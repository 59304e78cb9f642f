"""What a box has beside its release: the node's configuration, Vagrant's user, and an address by DHCP.

All of it is under `stage.carry`, so it is in every release that is staged on the box later.
"""

from __future__ import annotations

from vagrant.node import agent_units
from vagrant.tree import File, Files, Link, enabled

#: The public half of the key that everybody has (https://github.com/hashicorp/vagrant/tree/main/keys). A box with it is
#: for rehearsals on a private network, and for nothing else.
INSECURE_KEY = (
    "ssh-rsa AAAAB3NzaC1yc2EAAAABIwAAAQEA6NF8iallvQVp22WDkTkyrtvp9eWW6A8YVr+kz4TjGYe7gHzIw+niNltGEFHzD8+v"
    "1I2YJ6oXevct1YeS0o9HZyN1Q9qgCgzUFtdOKLv6IedplqoPkcmF0aYet2PkEDo3MlTBckFXPITAMzF8dJSIFo9D8HfdOV0IAdx4"
    "O7PtixWKn5y2hMNG0zQPyUecp4pzC6kivAIhyfHilFR61RGL+GPXQ2MWZWFYbAGjyiYJnAmCP3NOTd0jMZEnDkbUvxhMmBYSdETk"
    "1rRgm+R4LOzFUGaHqHDLKLX+FIPKcF96hrucXzcWyLbIbEgE98OHlnVYCzRdK8jlqm8tehUc9c9WhQ== vagrant insecure pu"
    "blic key"
    "\n"
)

BOOT_DEADLINE = 300

#: At each boot, before sshd: a release that was staged later does not know the user. Where there is no sudo, the user
#: is another name for root. Its password is none ("*"), and not locked ("!"): without PAM, sshd lets no locked user in.
_USER = r"""#!/bin/sh
set -e
home=/data/home/vagrant
if ! id vagrant > /dev/null 2>&1; then
    mkdir -p /data/home
    if command -v sudo > /dev/null; then
        useradd --password '*' --create-home --home-dir $home --shell /bin/bash vagrant
        printf 'vagrant ALL=(ALL) NOPASSWD: ALL\n' > /etc/sudoers.d/vagrant
        chmod 440 /etc/sudoers.d/vagrant
    else
        useradd --password '*' --non-unique --uid 0 --gid 0 --create-home --home-dir $home --shell /bin/bash vagrant
    fi
fi
mkdir -p $home/.ssh
cp /etc/updater/box/authorized_keys $home/.ssh/authorized_keys
chown -R "$(id -u vagrant):$(id -g vagrant)" $home
chmod 700 $home $home/.ssh
chmod 600 $home/.ssh/authorized_keys
"""

_USER_UNIT = """[Unit]
Description=Vagrant's user
DefaultDependencies=no
RequiresMountsFor=/data
After=systemd-remount-fs.service
Before=ssh.service sshd.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/etc/updater/box/user
"""

_NETWORK_UNIT = """[Unit]
Description=Addresses of the box
ConditionPathExists=/lib/systemd/systemd-networkd
Conflicts=systemd-networkd.service
After=systemd-udevd.service systemd-remount-fs.service
DefaultDependencies=no
Before=network.target
[Service]
Type=notify
Restart=on-failure
RuntimeDirectory=systemd/netif
RuntimeDirectoryPreserve=yes
ExecStartPre=+/bin/sh -c 'mkdir -p /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp; \\
    chown -R systemd-network: /run/systemd/netif; mkdir -p /run/systemd/network; \\
    cp /etc/updater/box/*.network /run/systemd/network/'
ExecStart=/lib/systemd/systemd-networkd
"""

_FIRST_CARD = """[Match]
Type=ether
Name=eth0 en*

[Network]
DHCP=ipv4
LinkLocalAddressing=no

[DHCPv4]
ClientIdentifier=mac
"""

_UNITS = {
    "box-user.service": (_USER_UNIT, "sysinit.target"),
    "box-network.service": (_NETWORK_UNIT, "sysinit.target"),
}

CARRIED = ("/etc/updater", *(
    path
    for unit, (_, target) in _UNITS.items()
    for path in (f"/etc/systemd/system/{unit}", f"/etc/systemd/system/{target}.wants/{unit}")
))  # fmt: skip

_NODE = """name = "box"
compatible = "{compatible}"
data = "/data/updater"

[slots]
a.device = "/dev/disk/by-partlabel/slot-a"
b.device = "/dev/disk/by-partlabel/slot-b"

[boot]
esp = "/efi"
deadline = {deadline}

[trust]
keys = ["/etc/updater/keys/release.pub"]

[[health.checks]]
name = "ssh"
kind = "tcp"
port = 22

[stage]
carry = {carry}
"""


def files(compatible: str, release_key: str, node_toml: str = "") -> Files:
    """All that is put into the slot beside the release. `node_toml`: the operator's; its `stage.carry` should have
    `CARRIED`.
    """
    carry = "[\n" + "".join(f'  "{path}",\n' for path in CARRIED) + "]"
    node = node_toml or _NODE.format(compatible=compatible, deadline=BOOT_DEADLINE, carry=carry)
    found: dict[str, File | Link] = {
        "/etc/updater/node.toml": File(content=node),
        "/etc/updater/keys/release.pub": File(content=release_key),
        "/etc/updater/box/user": File(content=_USER, mode=0o755),
        "/etc/updater/box/authorized_keys": File(content=INSECURE_KEY, mode=0o600),
        "/etc/updater/box/80-box.network": File(content=_FIRST_CARD),
        **agent_units(BOOT_DEADLINE),
    }
    for unit, (text, target) in _UNITS.items():
        found |= enabled(unit, text, wanted_by=target)
    return found
