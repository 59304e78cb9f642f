"""The Debian 12 root tree that every release of the lab is made of: debootstrap, then trimmed for quick boots."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from core.errors import NotReady
from core.run import run
from vagrant import cache

SUITE = "bookworm"

PACKAGES = (
    "linux-image-cloud-amd64",
    "systemd",
    "systemd-sysv",
    "udev",
    "openssh-server",
    "python3",
    "e2fsprogs",
    "dosfstools",
    "util-linux",
    "fdisk",
    "iproute2",
    "initramfs-tools",
    "kmod",
    "procps",
    "ca-certificates",
    "rpm",  # for the operator's packages
)

#: Runs inside the fresh tree. Everything here serves one of two ends: the machine can be reached, or boots quickly in
#: emulation (where each process and each kernel module costs ten to thirty times what it costs on real hardware).
RECIPE = r"""
set -eu
export DEBIAN_FRONTEND=noninteractive

# the disk: slots are found by partition label; which of the two is the root, the kernel command line says
mkdir -p /efi /data
cat > /etc/fstab <<'END'
/dev/root            /      ext4   noatime,errors=remount-ro   0 0
PARTLABEL=data       /data  ext4   noatime                     0 0
PARTLABEL=esp        /efi   vfat   noatime,umask=0077          0 0
END

# initrd: virtio only (ext4 is built into this kernel), without udev and fsck, which take five seconds in emulation (the
# kernel replays the journal itself); it also says on the serial line that a boot has begun
sed -i 's/^MODULES=.*/MODULES=list/; s/^COMPRESS=.*/COMPRESS=lz4/' /etc/initramfs-tools/initramfs.conf
echo 'FSTYPE=ext4' >> /etc/initramfs-tools/initramfs.conf
printf '%s\n' virtio_pci virtio_blk virtio_net > /etc/initramfs-tools/modules
cat > /etc/initramfs-tools/scripts/init-top/lab-beacon <<'END'
#!/bin/sh
[ "$1" = prereqs ] && exit 0
read -r id < /proc/sys/kernel/random/boot_id
read -r line < /proc/cmdline
echo "LAB-BOOT $id $line" > /dev/console
END
cd /usr/share/initramfs-tools
rm -f hooks/udev hooks/fsck hooks/dmsetup scripts/init-top/udev scripts/init-bottom/udev
cd /
cat > /etc/initramfs-tools/hooks/lab-blkid <<'END'
#!/bin/sh
[ "$1" = prereqs ] && exit 0
. /usr/share/initramfs-tools/hook-functions
copy_exec /sbin/blkid
END
chmod 755 /etc/initramfs-tools/hooks/lab-blkid
chmod 755 /etc/initramfs-tools/scripts/init-top/lab-beacon
version=$(ls /lib/modules)
update-initramfs -u -k "$version"
rm -f /vmlinuz* /initrd.img*
ln -s "vmlinuz-$version" /boot/vmlinuz
ln -s "initrd.img-$version" /boot/initrd.img

# network: the one card has the address that QEMU's user-mode network would hand out anyway; no daemon, no waiting
ln -s /dev/null /etc/systemd/network/99-default.link
cat > /etc/systemd/system/lab-network.service <<'END'
[Unit]
Description=Address of the lab's only network card
DefaultDependencies=no
After=systemd-remount-fs.service
Before=network.target ssh.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'ip link set lo up; ip link set eth0 up; ip address add 10.0.2.15/24 dev eth0; \
    ip route add default via 10.0.2.2'
[Install]
WantedBy=sysinit.target
END
systemctl enable lab-network.service ssh.service
systemctl set-default multi-user.target
cat > /etc/ssh/sshd_config.d/lab.conf <<'END'
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
PrintLastLog no
HostKey /etc/ssh/ssh_host_ed25519_key
END
rm -f /etc/ssh/ssh_host_*
# sshd need not wait for the network, and its check of the configuration costs a process
mkdir -p /etc/systemd/system/ssh.service.d
cat > /etc/systemd/system/ssh.service.d/lab.conf <<'END'
[Unit]
After=
[Service]
ExecStartPre=
END

# logs go to memory and, for diagnosis from outside, the serious ones to the serial line
mkdir -p /etc/systemd/journald.conf.d /etc/systemd/system.conf.d
printf '[Journal]\nStorage=volatile\nRuntimeMaxUse=16M\nForwardToConsole=no\n' > /etc/systemd/journald.conf.d/lab.conf
printf '[Manager]\nDefaultTimeoutStopSec=15s\nCtrlAltDelBurstAction=none\n' > /etc/systemd/system.conf.d/lab.conf

# a fixed identity, or systemd takes each boot for the first one and applies all presets
echo 5ab0c0de5ab0c0de5ab0c0de5ab0c0de > /etc/machine-id
echo node > /etc/hostname
printf '127.0.0.1 localhost node\n' > /etc/hosts

# devices: only disks and the card are looked at, so that no driver is loaded for what nobody uses
mkdir -p /etc/systemd/system/systemd-udev-trigger.service.d
cat > /etc/systemd/system/systemd-udev-trigger.service.d/lab.conf <<'END'
[Service]
ExecStart=
ExecStart=-udevadm trigger --type=devices --action=add --subsystem-match=block --subsystem-match=net
END

find /usr/lib/udev/rules.d -type f ! -name 50-udev-default.rules ! -name 60-block.rules ! -name 80-drivers.rules \
    ! -name 60-persistent-storage.rules ! -name 99-systemd.rules -delete

systemctl disable getty@tty1.service
for unit in serial-getty@ttyS0.service getty-static.service apt-daily.timer apt-daily-upgrade.timer \
    dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-journal-flush.service \
    systemd-binfmt.service systemd-pstore.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
    systemd-hwdb-update.service systemd-firstboot.service systemd-repart.service systemd-boot-system-token.service \
    systemd-sysusers.service systemd-user-sessions.service systemd-random-seed.service systemd-modules-load.service \
    systemd-sysctl.service proc-sys-fs-binfmt_misc.automount systemd-initctl.socket \
    systemd-networkd.service systemd-networkd.socket systemd-networkd-wait-online.service kmod-static-nodes.service \
    systemd-logind.service systemd-ask-password-console.path systemd-ask-password-wall.path \
    modprobe@configfs.service modprobe@drm.service modprobe@efi_pstore.service modprobe@fuse.service \
    dev-hugepages.mount dev-mqueue.mount sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
    sys-fs-fuse-connections.mount; do
    ln -sf /dev/null "/etc/systemd/system/$unit"
done
mkdir -p /etc/systemd/system-generators
cd /lib/systemd/system-generators
for generator in *; do
    [ "$generator" = systemd-fstab-generator ] || ln -s /dev/null "/etc/systemd/system-generators/$generator"
done
cd /

rm -rf /usr/share/doc/* /usr/share/man/* /usr/share/info/* /usr/share/locale/* /usr/share/i18n/* /usr/share/lintian \
    /usr/lib/udev/hwdb.d /usr/lib/udev/hwdb.bin /var/cache/apt/* /var/cache/debconf/*-old /var/lib/apt/lists/* \
    /var/log/*.log /var/log/apt /var/cache/ldconfig/aux-cache /debootstrap

# bytecode that is valid whatever the files' times are: images are built with one fixed time
find /usr/lib/python3* -name '*.pyc' -delete
python3 -m compileall -q --invalidation-mode unchecked-hash /usr/lib/python3.11 /usr/lib/python3/dist-packages || true
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """Where this machine itself gets its Debian packages from. `keyring` may be empty (debootstrap's own then)."""

    uri: str
    keyring: str


def host_mirror(etc: Path = Path("/etc/apt")) -> Mirror:
    """The first source of this machine's apt that offers SUITE. Raises NotReady when there is none."""
    for path in sorted(etc.glob("sources.list.d/*.sources")):
        for stanza in path.read_text().split("\n\n"):
            fields = dict(line.split(":", 1) for line in stanza.splitlines() if ":" in line and line[0] not in "# \t")
            if SUITE in fields.get("Suites", "").split() and "deb" in fields.get("Types", "").split():
                return Mirror(uri=fields["URIs"].split()[0], keyring=fields.get("Signed-By", "").strip())
    for path in [etc / "sources.list", *sorted(etc.glob("sources.list.d/*.list"))]:
        for line in path.read_text().splitlines() if path.exists() else []:
            words = [word for word in line.split() if not word.startswith("[") and not word.endswith("]")]
            if words[:1] == ["deb"] and SUITE in words[2:3]:
                return Mirror(uri=words[1], keyring="")
    raise NotReady(f"this machine's apt knows no source for Debian {SUITE}", what=f"looked in {etc}")


def base_tree() -> Path:
    """The cached base tree (needs root and, the first time, a Debian mirror; about two minutes then)."""
    fresh = cache.cached("bootstrap", cache.key(SUITE, *PACKAGES), _bootstrap)

    def build(part: Path) -> None:
        run("cp", "-a", fresh, part, timeout=120)
        run("chroot", part, "sh", "-c", RECIPE, timeout=300)

    return cache.cached("base", cache.key(SUITE, *PACKAGES, RECIPE), build)


def _bootstrap(part: Path) -> None:
    mirror = host_mirror()
    debs = cache.root() / "debs"
    debs.mkdir(exist_ok=True)
    options = ["--variant=minbase", f"--cache-dir={debs}", f"--include={','.join(PACKAGES)}"]
    if mirror.keyring.startswith("/"):
        options.append(f"--keyring={mirror.keyring}")
    run("debootstrap", *options, SUITE, part, mirror.uri, timeout=900, env=proxies())


def proxies() -> dict[str, str]:
    """Proxy settings of this machine, which programs started by `run` do not inherit."""
    found = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    line = run("apt-config", "dump", "Acquire::http::Proxy").stdout.partition('"')[2].partition('"')[0]
    return {**({"http_proxy": line} if line else {}), **found}
