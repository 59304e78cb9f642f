"""Releases of the rehearsed sites: one image for dispatchers and site servers alike. What a machine is, its files under
/etc/rehearsal say, which the operator keeps over updates; what it has is under /data.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from images.build import BuildSpec, build
from images.keys import load_signer
from vagrant import cache
from vagrant.disk import Layout, make_disk
from vagrant.loader import esp_files
from vagrant.node import COMPATIBLE, Lab, agent_units, install
from vagrant.rehearsal.sip import SITE, patient
from vagrant.rehearsal.sites_base import NEW_DATABASE, base_tree
from vagrant.rehearsal.sites_operator import switch, write_catalogue
from vagrant.tree import AGENT, File, Files, enabled, release_tree

OLD, NEW = "MR95-1", "MR96-1"
IMAGE_SIZE = 760 << 20

#: Seconds for a boot on trial: four machines share two emulated cores.
BOOT_DEADLINE = 400

LIB = PurePosixPath("/usr/lib/rehearsal")
CONFIG = PurePosixPath("/etc/rehearsal")
DATA = PurePosixPath("/data/site")

_NETWORK = f"""[Unit]
Description=The card in the network of the sites
DefaultDependencies=no
ConditionPathExists={CONFIG}/address
After=systemd-remount-fs.service
Before=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'sysctl -qw net.ipv4.ip_nonlocal_bind=1; ip link set eth1 up; \\
    ip address add "$(cat {CONFIG}/address)" dev eth1'
"""

#: The kernel of cloud images has no other watchdog; without one no server passes the first check of an upgrade.
_WATCHDOG = """[Unit]
Description=Watchdog
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/sbin/modprobe softdog
"""


def _service(what: str, config: str, start: str, *, before: str = "", more: str = "") -> str:
    """A unit that runs where its configuration is there."""
    first = f"ExecStartPre=/bin/sh -c '{before}'\n" if before else ""
    return (
        f"[Unit]\nDescription={what}\nConditionPathExists={CONFIG}/{config}\nRequiresMountsFor=/data\n"
        "After=rehearsal-network.service\nStartLimitIntervalSec=0\n"
        f"[Service]\nTimeoutStartSec=300\nTimeoutStopSec=60\nRestart=always\nRestartSec=1\n{more}{first}"
        f"ExecStart={start}\n"
    )


#: Call programs go ahead of others on their machine, but not in real time: sipp's clock would take all of a slow one.
_AHEAD = "Nice=-5\n"

#: sipp asks for a timer every millisecond; that alone took a fifth of an emulated machine. A packet still wakes it.
_COARSE = "TimerSlackNSec=20ms\n"

SERVICES = {
    "rehearsal-kamailio.service": _service(
        "Dispatcher", "kamailio.cfg",
        f"/usr/sbin/kamailio -DD -E -f {CONFIG}/kamailio.cfg -m 64 -M 8 -Y /run/kamailio -P /run/kamailio/pid",
        before="mkdir -p /run/kamailio", more=_AHEAD,
    ),
    "rehearsal-keepalived.service": _service(
        "Virtual IP", "keepalived.conf",
        f"/usr/sbin/keepalived --dont-fork --log-console --no-syslog --use-file {CONFIG}/keepalived.conf",
    ),
    "rehearsal-mariadb.service": _service(
        "Books", "mariadb.cnf", f"/usr/sbin/mariadbd --defaults-file={CONFIG}/mariadb.cnf",
        before=f"[ -d /data/db ] || cp -a {NEW_DATABASE} /data/db; install -d -o mysql /run/mariadb",
        more="Type=notify\n",
    ),
    "rehearsal-calls.service": _service(
        "Call server", "calls", f"{LIB}/call-server", before=f"mkdir -p {DATA}/calls", more=_AHEAD + _COARSE
    ),
    "rehearsal-billing.service": _service(
        "Billing engine", "charging.json", f"/usr/bin/python3 -I {LIB}/billing {CONFIG}/charging.json"
    ),
}  # fmt: skip

_CALL_SERVER = f"""#!/bin/sh
exec sipp -sf {LIB}/site.xml -i "$(cat {CONFIG}/calls)" -p 5060 -nostdin -aa -cp 8888 -skip_rlimit \\
    -deadcall_wait 500 -timer_resol 50 -trace_logs -log_file {DATA}/calls/$(date +%s%N).log \\
    -trace_err -error_file {DATA}/call-errors > /dev/null
"""

_BILLING = f"""import sys
sys.path[:0] = ["{AGENT}", "{LIB}"]
import charging
charging.main(sys.argv[1])
"""

#: Healthy is who does all that its configuration says.
_HEALTH = f"""#!/bin/sh
cd {CONFIG} || exit 1
if [ -e kamailio.cfg ]; then
    kamcmd -s unix:/run/kamailio/ctl dispatcher.list | grep -q 'FLAGS: [AD][PX]' || {{ echo no destination; exit 1; }}
    systemctl is-active -q rehearsal-keepalived || {{ echo no keepalived; exit 1; }}
fi
if [ -e mariadb.cnf ]; then
    mariadb-admin --no-defaults --socket=/run/mariadb/s --connect-timeout=5 ping || exit 1
fi
if [ -e charging.json ]; then
    python3 -I -c 'import urllib.request as u; u.urlopen("http://'"$(cat calls)"':8080/calls", timeout=5)' || exit 1
    systemctl is-active -q rehearsal-calls || {{ echo no call server; exit 1; }}
fi
exit 0
"""

SWITCH, HEALTH = "/usr/sbin/site-switch", "/usr/bin/rehearsal-health"


def tree(release: str) -> Path:
    """The cached root tree of a release."""
    files: dict[str, object] = {}
    found: dict[str, Files] = {"agent": agent_units(BOOT_DEADLINE)}
    found["network"] = enabled("rehearsal-network.service", _NETWORK, wanted_by="sysinit.target")
    found["watchdog"] = enabled("rehearsal-watchdog.service", _WATCHDOG)
    for unit, text in SERVICES.items():
        found[unit] = enabled(unit, text)
    for part in found.values():
        files |= part
    programs = {SWITCH: switch(DATA), HEALTH: _HEALTH, f"{LIB}/call-server": _CALL_SERVER, f"{LIB}/billing": _BILLING}
    files |= {name: File(content=text, mode=0o755) for name, text in programs.items()}
    parts = {"site.xml": patient(SITE), "charging.py": Path(__file__).with_name("sites_charging.py").read_text()}
    files |= {f"{LIB}/{name}": File(content=text) for name, text in parts.items()}
    return release_tree(release, files=files, foundation=base_tree())  # type: ignore[arg-type]


def bundle(lab: Lab, release: str) -> Path:
    """The cached, signed bundle of a release; the new one has migrations."""
    root = tree(release)

    def make(part: Path) -> None:
        with TemporaryDirectory(prefix="updater-catalogue-") as scratch:
            sections = {"migrations": write_catalogue(Path(scratch, "migrations"))} if release == NEW else {}
            wanted = BuildSpec(
                release=release, compatible=COMPATIBLE, tree=root, size=IMAGE_SIZE, kernel="/boot/vmlinuz",
                initrd="/boot/initrd.img", level=3, sections=sections,
            )  # fmt: skip
            build(wanted, part, [load_signer(str(lab.keys / "release.pem"))])

    with TemporaryDirectory(prefix="updater-catalogue-") as scratch:
        catalogue = sorted(write_catalogue(Path(scratch, "migrations")).iterdir())
        digest = cache.key(root.name, lab.keys.name, *catalogue)
    return cache.cached("sites-bundle", digest, make)


def disk(lab: Lab) -> Path:
    """The cached disk, raw, on which the old release is installed in slot a, and nothing is configured."""
    layout = Layout(data=768)
    installed, esp = bundle(lab, OLD), esp_files(layout)

    def make(part: Path) -> None:
        slot = part.with_name(f"{part.name}.slot")
        try:
            install(installed, lab.trust, slot, layout.slot << 20)
            make_disk(part, slot_a=slot, esp=esp, data={"/site/README": File(content="of the site\n")}, layout=layout)
        finally:
            slot.unlink(missing_ok=True)

    return cache.cached("sites-disk", cache.key(installed, repr(layout), *esp, *esp.values()), make)
