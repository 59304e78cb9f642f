"""The root tree that releases of the rehearsed sites are made of: the lab's own, with a telephony server's programs."""

from __future__ import annotations

from pathlib import Path

from core.run import run
from vagrant import base, cache

#: Dispatcher, call server, database, and what the agent speaks to that with.
PACKAGES = ("kamailio", "keepalived", "sip-tester", "mariadb-server", "python3-pymysql", "util-linux-extra")

#: An initialised, empty data directory of MariaDB: a machine's first start copies it.
NEW_DATABASE = "/usr/lib/rehearsal/database"

_RECIPE = rf"""
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
mkdir -p /etc/mysql/mariadb.conf.d
printf '[mysqld]\ninnodb_log_file_size=16M\n' > /etc/mysql/mariadb.conf.d/90-small.cnf
apt-get update -qq
apt-get install -y -qq --no-install-recommends {" ".join(PACKAGES)} > /dev/null
rm /usr/sbin/policy-rc.d
mkdir -p $(dirname {NEW_DATABASE})
mv /var/lib/mysql {NEW_DATABASE}
mkdir -p /var/lib/mysql
for unit in kamailio keepalived mariadb; do
    systemctl disable $unit.service
    ln -sf /dev/null /etc/systemd/system/$unit.service
done
rm -rf /usr/share/doc/* /usr/share/man/* /usr/share/info/* /usr/share/locale/* /usr/share/i18n/* /usr/share/lintian \
    /var/cache/apt/* /var/cache/debconf/*-old /var/lib/apt/lists/* /var/log/*.log /var/log/apt /var/log/mysql/* \
    /etc/apt/sources.list.d/host.sources /etc/apt/apt.conf.d/99host /etc/resolv.conf \
    /usr/share/mysql/*/ /usr/bin/mariadb-test* /usr/bin/aria_* /usr/bin/myisam*
find /usr/bin /usr/sbin -name 'mariadb-*' -size +1M ! -name mariadb-admin ! -name mariadb-dump -delete
cd /usr/bin
rm -f perror innochecksum my_print_defaults resolve_stack_dump resolveip replace mariadbd-safe-helper
cd /usr/lib/modules/*/kernel
rm -rf fs/btrfs fs/ceph fs/nfs fs/nfsd fs/smb fs/xfs net/ceph net/netfilter net/openvswitch net/sctp net/sunrpc net/tipc
cd drivers
rm -rf hv infiniband md media net/ethernet nvme scsi target vhost
find /usr/lib/python3* -name '*.pyc' -delete
python3 -m compileall -q --invalidation-mode unchecked-hash /usr/lib/python3.11 /usr/lib/python3/dist-packages || true
"""


def base_tree() -> Path:
    """The cached tree (needs root and, the first time, a Debian mirror; about two minutes then)."""
    plain = base.base_tree()

    def build(part: Path) -> None:
        run("cp", "-a", plain, part, timeout=120)
        _borrow_apt(part)
        run("chroot", part, "sh", "-c", _RECIPE, timeout=900, env=base.proxies())

    return cache.cached("sites-base", cache.key(plain.name, _RECIPE), build)


def _borrow_apt(tree: Path) -> None:
    """Let the tree's apt use the mirror of this machine, for as long as the recipe runs."""
    mirror = base.host_mirror()
    fields = [f"URIs: {mirror.uri}", f"Suites: {base.SUITE}", "Components: main", "Types: deb"]
    fields += ["Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg"] if mirror.keyring else []
    sources = tree / "etc/apt/sources.list.d"
    sources.mkdir(parents=True, exist_ok=True)
    for old in [tree / "etc/apt/sources.list", *sources.iterdir()]:
        old.unlink(missing_ok=True)
    (sources / "host.sources").write_text("\n".join(fields) + "\n")
    proxy = base.proxies().get("http_proxy", "")
    (tree / "etc/apt/apt.conf.d/99host").write_text(f'Acquire::http::Proxy "{proxy}";\n' if proxy else "")
    resolver = Path("/etc/resolv.conf")
    (tree / "etc/resolv.conf").unlink(missing_ok=True)
    (tree / "etc/resolv.conf").write_text(resolver.read_text() if resolver.exists() else "")
