#!/usr/bin/env python3
"""Looks at the packages in target/package, installs them in a throw-away root, and says what is wrong.

Needs root, or user namespaces do not do: a mount namespace with an overlay over this machine's own /, in
which dpkg and rpm really run their scripts. Nothing outside of it is changed. systemd is not running there;
a `systemctl` of our own stands in, which notes what it is asked, and answers for processes that do run. A
booted systemd with the package is tests/vm. Needs lintian, rpm, dpkg, binutils and jsonschema; the schemas
of CycloneDX come with cyclonedx-python-lib (requirements.txt). The exit code is 1 if anything is wrong.
"""

import gzip
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib

import jsonschema
import referencing

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OUT = ROOT / "target/package"
BUILD = ROOT / "packaging/build.sh"

wrong = []
done = 0


def claim(holds, words):
    """Counts a claim, and remembers one that does not hold."""
    global done
    done += 1
    if not holds:
        wrong.append(words)
        print(f"WRONG: {words}")


def run(*command, check=True, **options):
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    if check and ended.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: {ended.returncode}\n{ended.stdout}{ended.stderr}")
    return ended


def one(pattern):
    found = sorted(OUT.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"target/package/{pattern}: {len(found)} files; run packaging/build.sh")
    return found[0]


# --- What is in them ---------------------------------------------------------------------------------------


def contents(deb):
    """Path to (mode, owner, size) of each file and directory."""
    rows = {}
    for line in run("dpkg-deb", "--contents", deb).stdout.splitlines():
        mode, owner, size, _, _, path = line.split(None, 5)
        rows[path.removeprefix(".")] = (mode, owner, int(size))
    return rows


def look_at_deb(deb, commands):
    lint = run("lintian", "--fail-on", "error,warning", deb, check=False)
    claim(lint.returncode == 0, f"lintian is content:\n{lint.stdout}")
    files = contents(deb)
    claim(all(owner == "0/0" for _, owner, _ in files.values()), "everything is root's")
    claim(not any(mode[5] == "w" or mode[8] == "w" for mode, _, _ in files.values()), "only root writes")
    wanted = [
        "/usr/bin/tlsward",
        "/etc/tlsward/config.toml",
        "/usr/lib/systemd/system/tlsward.service",
        "/usr/lib/systemd/system/tlsward@.service",
        "/usr/lib/sysusers.d/tlsward.conf",
        "/usr/lib/tmpfiles.d/tlsward.conf",
        "/usr/libexec/tlsward/restart-running",
        "/usr/share/bash-completion/completions/tlsward",
        "/usr/share/zsh/vendor-completions/_tlsward",
        "/usr/share/fish/vendor_completions.d/tlsward.fish",
        "/usr/share/man/man1/tlsward.1.gz",
        "/usr/share/man/man5/tlsward.toml.5.gz",
        "/usr/share/doc/tlsward/copyright",
        "/usr/share/doc/tlsward/sbom.cdx.json",
        "/usr/share/doc/tlsward/changelog.gz",
        "/usr/share/doc/tlsward/changelog.Debian.gz",
        "/usr/share/doc/tlsward/docs/install.md",
        "/usr/share/doc/tlsward/docs/upgrade.md",
        *(f"/usr/share/man/man1/tlsward-{command}.1.gz" for command in commands),
    ]
    for path in wanted:
        claim(files.get(path, ("", "", 0))[2] > 0, f"the .deb has {path}")
    # An example: enabled by its name alone it would take port 7001.
    claim("/usr/lib/systemd/system/tlsward.socket" not in files, "the example of a socket is no unit")
    etc = [path for path in files if path.startswith("/etc/") and not path.endswith("/")]
    conffiles = run("dpkg-deb", "--ctrl-tarfile", deb, check=True, stdin=None) and control(deb, "conffiles").split()
    claim(etc == conffiles, f"each file of /etc is a conffile: {etc}, {conffiles}")
    field = lambda name: run("dpkg-deb", "--field", deb, name).stdout.strip()
    claim(re.search(r"libc6 \(>= 2\.\d+\)", field("Depends")), f"Depends is computed: {field('Depends')}")
    claim(field("Recommends") == "ca-certificates" and field("Section") == "net", "Recommends and Section")
    for script in ("postinst", "prerm", "postrm"):
        text = control(deb, script)
        claim(not re.search(r"(systemctl|invoke)[^\n]* (enable|start)\b", text), f"{script} starts nothing")


def control(deb, name):
    with tempfile.TemporaryDirectory() as directory:
        run("dpkg-deb", "--control", deb, directory)
        return (pathlib.Path(directory) / name).read_text()


def look_at_program(deb, dbgsym, built):
    """Stripped, and its debug information to be found by its build id."""
    with tempfile.TemporaryDirectory() as directory:
        run("dpkg-deb", "--extract", deb, directory)
        program = pathlib.Path(directory) / "usr/bin/tlsward"
        sections = run("readelf", "--sections", "--wide", program).stdout
        claim(".debug_info" not in sections and ".symtab" not in sections, "the program is stripped")
        claim(str(ROOT).encode() not in program.read_bytes(), "no path of this tree is in the program")
        build_id = re.search(r"Build ID: (\w+)", run("readelf", "--notes", program).stdout)[1]
        debug = f"/usr/lib/debug/.build-id/{build_id[:2]}/{build_id[2:]}.debug"
        claim(debug in contents(dbgsym), f"the debug information is {debug}")
        version = run(program, "--version").stdout.split()[1]
        claim(version == run(built, "--version").stdout.split()[1], "it is the program that was built")


def look_at_manual(deb, commands):
    with tempfile.TemporaryDirectory() as directory:
        run("dpkg-deb", "--extract", deb, directory)
        pages = sorted(pathlib.Path(directory).glob("usr/share/man/man*/*.gz"))
        claim(len(pages) == len(commands) + 2, f"a page for each command, and two: {len(pages)}")
        for page in pages:
            text = gzip.decompress(page.read_bytes()).decode()
            claim(text.count("\n.SH ") >= 3 and ".SH NAME" in text, f"{page.name} has its sections")
        copyright_ = (pathlib.Path(directory) / "usr/share/doc/tlsward/copyright").read_text()
        named = set(re.findall(r"vendor/(.+)/\*", copyright_))
        sbom = json.loads((pathlib.Path(directory) / "usr/share/doc/tlsward/sbom.cdx.json").read_text())
        linked = {f"{each['name']}-{each['version']}" for each in sbom["components"]} - {f"tlsward-sys-{sbom['metadata']['component']['version']}"}
        claim(named == linked, f"copyright names what is linked: {sorted(named ^ linked)}")
        claim("the authors of rustls" not in copyright_, "owners are read from the crates")


def look_at_rpm(rpm, deb):
    names = set(run("rpm", "-qlp", rpm).stdout.split())
    same = {path for path in contents(deb) if path.startswith(("/usr/bin/", "/etc/", "/usr/lib", "/usr/share/man/"))}
    same = {path for path in same if not path.endswith("/") and "lintian" not in path}
    claim(same <= names, f"the .rpm has what the .deb has: {sorted(same - names)}")
    configs = run("rpm", "-qp", "--configfiles", rpm).stdout.split()
    claim(configs == ["/etc/tlsward/config.toml"], f"its configuration: {configs}")
    flags = run("rpm", "-qp", "--queryformat", "[%{FILENAMES} %{FILEFLAGS:fflags}\n]", rpm).stdout
    claim("/etc/tlsward/config.toml cn\n" in flags, "an edited configuration is not replaced")
    scripts = run("rpm", "-qp", "--scripts", rpm).stdout
    claim(not re.search(r"systemctl[^\n]* (enable|start)\b", scripts), "the .rpm's scripts start nothing")


def look_at_sbom(built):
    """A valid document, which lists what the program itself says that it was made of."""
    path = one("tlsward-*-linux-gnu.cdx.json")
    document = json.loads(path.read_text())
    # Not imported: all that is wanted of it is the files of schemas.
    schemas = pathlib.Path(importlib.util.find_spec("cyclonedx").origin).parent / "schema/_res"
    resources = []
    for name in ("spdx.SNAPSHOT.schema.json", "jsf-0.82.SNAPSHOT.schema.json"):
        schema = json.loads((schemas / name).read_text())
        resource = referencing.Resource.from_contents(schema, referencing.jsonschema.DRAFT7)
        resources += [(name, resource), (f"http://cyclonedx.org/schema/{name}", resource)]
    schema = json.loads((schemas / "bom-1.5.SNAPSHOT.schema.json").read_text())
    validator = jsonschema.Draft7Validator(schema, registry=referencing.Registry().with_resources(resources))
    errors = [error.message for error in validator.iter_errors(document)]
    claim(not errors, f"the SBOM is CycloneDX 1.5: {errors[:3]}")
    broken = {**document, "bomFormat": "x"}
    claim(not validator.is_valid(broken), "the schema finds what is wrong")

    listed = {(each["name"], each["version"]) for each in document["components"]}
    locked = {
        (each["name"], each["version"]) for each in tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    }
    for name in ("rustls", "aws-lc-rs", "tokio", "kube-client"):
        versions = {version for locked_name, version in locked if locked_name == name}
        claim({v for n, v in listed if n == name} == versions and versions, f"{name} as in Cargo.lock: {versions}")
    extra = {each for each in listed if each[0] != "rust-std"} - locked
    claim(not extra, f"nothing that Cargo.lock does not have: {extra}")
    claim(not {"ring", "syn", "proptest", "openssl"} & {name for name, _ in listed}, "nothing that is not linked")

    # The program's line tables name the sources that it was compiled from.
    sources = set(re.findall(rb"/registry/src/[\w.-]+/([\w-]+?)-(\d+\.\d+\.\d+[\w.+-]*)/", built.read_bytes()))
    sources = {(name.decode(), version.decode()) for name, version in sources}
    claim(len(sources) > 100, f"the program names its sources: {len(sources)}")
    # The macros that expand into code of another crate are named as its place.
    claim(not sources - listed, f"the SBOM lists what the program was compiled from: {sorted(sources - listed)}")


def look_at_tarball():
    """If there is one: it needs a library for musl, which not every machine has."""
    found = sorted(OUT.glob("tlsward-*-linux.tar.gz"))
    if not found:
        print("no tarball was made here: nothing said of it")
        return
    (tarball,) = found
    with tempfile.TemporaryDirectory() as directory:
        run("tar", "--extract", "--gzip", "--file", tarball, "--directory", directory)
        (root,) = pathlib.Path(directory).iterdir()
        program = root / "bin/tlsward"
        headers = run("readelf", "--program-headers", "--dynamic", program).stdout
        claim("INTERP" not in headers and "NEEDED" not in headers, "the program in the tarball needs nothing")
        install = (root / "INSTALL").read_text()
        for path in re.findall(r"install .*? ((?:\S+/)\S+(?: systemd/\S+)*) /", install):
            for each in path.split():
                claim(any(root.glob(each)), f"INSTALL's {each} is in the tarball")
        claim("/usr/local/bin/tlsward run" in (root / "systemd/tlsward.service").read_text(), "units for /usr/local")
        run(program, "check", "--config", root / "etc/config.toml")
        listing = run("tar", "--list", "--verbose", "--gzip", "--file", tarball).stdout
        claim(all(" 0/0 " in line for line in listing.splitlines()), "everything in the tarball is root's")


def sums_and_sameness(built_in):
    run("sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS", cwd=OUT)
    listed = {line.split("  ")[1] for line in (OUT / "SHA256SUMS").read_text().splitlines()}
    there = {path.name for path in OUT.iterdir() if path.is_file()} - {"SHA256SUMS"}
    claim(listed == there, f"every package has its checksum: {sorted(listed ^ there)}")
    kinds = ["*.deb", "*.ddeb", "*.rpm", "*.cdx.json"]
    before = {path.name: path.read_bytes() for kind in kinds for path in OUT.glob(kind)}
    elsewhere = {**os.environ, "TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8", "HOSTNAME": "other", "USER": "other"}
    for path in [*ROOT.glob("packaging/**/*"), *ROOT.glob("systemd/*"), *ROOT.glob("docs/*.md")]:
        os.utime(path)
    run("sh", "-c", f"umask 077; exec {BUILD} --built {built_in} deb rpm sbom", env=elsewhere)
    for name, bytes_ in before.items():
        claim((OUT / name).read_bytes() == bytes_, f"{name} is the same when it is made again")


# --- Installing them ---------------------------------------------------------------------------------------

STAND_IN = """#!/bin/sh
# systemctl, for what the scripts of a package ask. Notes everything but questions.
case "$*" in
    *list-units*) cat /run/units 2>/dev/null; exit 0 ;;
    *"--property MainPID"*) for unit; do :; done; cat "/run/pid-$unit"; exit 0 ;;
    *"--property TriggeredBy"*) echo tlsward-billing.socket; exit 0 ;;
    *is-enabled*|*is-active*) exit 1 ;;
esac
echo "$*" >>/run/asked
"""


class Machine:
    """A throw-away copy of this machine's file system, in a mount namespace; changed by commands in it."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        for each in ("upper", "merged"):
            (self.directory / each).mkdir()
        self.root = self.directory / "merged"
        # Held open by a process of ours; nsenter's commands join it.
        self.holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-ec", self.FURNISH, "sh", self.directory, OUT],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        if self.holder.stdout.readline() != "ready\n":
            raise SystemExit("no mount namespace with an overlay: see above")
        stand_in = self.directory / "systemctl"
        stand_in.write_text(STAND_IN)
        # rpm's scripts look in /usr/bin only. A policy-rc.d of this machine must not answer for another.
        self("install -m 755 /media/systemctl /usr/bin/systemctl; rm -f /usr/sbin/policy-rc.d")
        self("mkdir -p /run/systemd/system; : >/run/asked")

    FURNISH = """
        mount -t tmpfs none "$1/upper" && mkdir "$1/upper/u" "$1/upper/w"
        mount -t overlay -o "lowerdir=/,upperdir=$1/upper/u,workdir=$1/upper/w" none "$1/merged"
        mount -t tmpfs none "$1/merged/run"
        mount -t tmpfs none "$1/merged/tmp"
        mount --rbind /dev "$1/merged/dev"
        mount -t proc none "$1/merged/proc"
        mount --bind "$2" "$1/merged/mnt"
        mount --bind "$1" "$1/merged/media"
        echo ready
        read end
    """

    def __call__(self, script, check=True):
        path = "/usr/sbin:/usr/bin:/sbin:/bin"
        return run(
            "nsenter", f"--mount=/proc/{self.holder.pid}/ns/mnt", "chroot", self.root, "env", "-i", f"PATH={path}",
            "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8", "sh", "-ec", script, check=check,
        )

    def asked(self):
        """What systemctl was asked since the last time."""
        return self("cat /run/asked; : >/run/asked").stdout.splitlines()

    def mode(self, path):
        return self(f"stat -c '%a %U:%G' {path}").stdout.strip()

    def exists(self, path):
        return self(f"test -e {path} || test -L {path}", check=False).returncode == 0

    def end(self):
        self.holder.stdin.close()
        self.holder.wait(timeout=60)


ENABLED = "/etc/systemd/system/multi-user.target.wants/tlsward.service"


def newer(deb, directory, break_check=False):
    """The package as its next version would be; where asked for, with a program that refuses every
    configuration."""
    tree = directory / "newer"
    shutil.rmtree(tree, ignore_errors=True)
    run("dpkg-deb", "--raw-extract", deb, tree)
    text = (tree / "DEBIAN/control").read_text()
    version = re.search(r"^Version: (.*)$", text, re.M)[1]
    (tree / "DEBIAN/control").write_text(text.replace(f"Version: {version}", "Version: 99.0.0-1"))
    if break_check:
        program = tree / "usr/bin/tlsward"
        program.unlink()
        program.write_text("#!/bin/sh\nexit 2\n")
        program.chmod(0o755)
    made = directory / "newer.deb"
    run("dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, made)
    return made


def install(machine, deb):
    print("  install")
    machine(f"dpkg --install /mnt/{deb.name} >/dev/null")
    claim(machine.mode("/etc/tlsward") == "750 root:tlsward", f"/etc/tlsward: {machine.mode('/etc/tlsward')}")
    certs = machine.mode("/etc/tlsward/certs")
    claim(certs == "750 root:tlsward", f"/etc/tlsward/certs: {certs}")
    claim(machine.mode("/etc/tlsward/config.toml") == "644 root:root", "config.toml")
    user = machine("getent passwd tlsward").stdout.split(":")
    claim(user[5:] == ["/nonexistent", "/usr/sbin/nologin\n"], f"the user: {user}")
    asked = machine.asked()
    claim(not machine.exists(ENABLED), "nothing is enabled unasked")
    claim(not [line for line in asked if "daemon-reload" not in line], f"nothing is started unasked: {asked}")
    claim(any("daemon-reload" in line for line in asked), "the units are made known")

    checked = machine("setpriv --reuid tlsward --regid tlsward --init-groups tlsward check")
    claim("no services" in checked.stdout, f"the configuration as it comes is good: {checked.stdout}")
    machine("install -d -o tlsward /run/tlsward")
    # The process serves as its user, with nothing but the file as it comes.
    served = machine("""
        setpriv --reuid tlsward --regid tlsward --init-groups tlsward run >/run/log 2>&1 & pid=$!
        left=100; until [ -S /run/tlsward/admin.sock ]; do left=$((left - 1)); [ $left -gt 0 ]; sleep 0.1; done
        tlsward status; tlsward stop --wait; wait $pid""", check=False)
    claim(served.returncode == 0, f"it runs as it comes: {served.stdout}{served.stderr}{machine('cat /run/log').stdout}")
    verified = machine("systemd-analyze verify tlsward.service tlsward@billing.service", check=False)
    complaints = [
        line for line in (verified.stdout + verified.stderr).splitlines()
        # systemd 252 does not know it yet; the line before it stands.
        if "notify-reload" not in line and "tlsward" in line
    ]
    claim(verified.returncode == 0 and not complaints, f"systemd-analyze verify: {complaints}")
    completion = machine("bash -c '. /usr/share/bash-completion/completions/tlsward; complete -p tlsward'")
    claim("_tlsward" in completion.stdout, f"bash completes: {completion.stdout}")


def upgrade(machine, deb, directory):
    print("  upgrade")
    machine("""
        mkdir -p /etc/systemd/system/multi-user.target.wants
        ln -s /usr/lib/systemd/system/tlsward.service /etc/systemd/system/multi-user.target.wants/
        echo '# mine' >>/etc/tlsward/config.toml
        install -m 600 /dev/null /etc/tlsward/certs/tls.key
        chmod 700 /etc/tlsward/certs
    """)
    machine.asked()
    same = newer(deb, directory)
    # Two that run; only the second has a mistake in its configuration.
    start = """
        install -d -o tlsward /run/tlsward /run/tlsward-bad
        printf '[admin]\\nlisten = "unix:/run/tlsward-bad/admin.sock"\\n[services]\\n' >/etc/tlsward/bad.toml
        tlsward run --config=/etc/tlsward/config.toml >/run/log 2>&1 & echo $! >/run/pid-tlsward.service
        tlsward run -c /etc/tlsward/bad.toml >/run/log 2>&1 & echo $! >/run/pid-tlsward@bad.service
        for each in tlsward tlsward-bad; do
            left=100; until [ -S /run/$each/admin.sock ]; do left=$((left - 1)); [ $left -gt 0 ]; sleep 0.1; done
        done
        echo 'nonsense = 1' >>/etc/tlsward/bad.toml
        echo 'tlsward.service loaded active running x' >/run/units
        echo 'tlsward@bad.service loaded active running x' >>/run/units
    """
    machine(start)
    shutil.copy(same, machine.directory / "newer.deb")
    said = machine("dpkg --install /media/newer.deb 2>&1").stdout
    asked = machine.asked()
    claim(
        [line for line in asked if "daemon-reload" not in line] == ["try-restart tlsward.service"],
        f"an upgrade restarts what runs and can start again, and does nothing else: {asked}\n{said}",
    )
    claim("tlsward@bad.service goes on with the old program" in said, f"and says what it left alone: {said}")
    claim(machine.exists(ENABLED), "what is enabled stays enabled")
    claim("# mine" in machine("cat /etc/tlsward/config.toml").stdout, "an edited configuration stays")
    claim(machine.mode("/etc/tlsward/certs") == "700 root:tlsward", "modes of the operator's choice stay")
    claim(machine.mode("/etc/tlsward/certs/tls.key") == "600 root:root", "keys are not touched")

    shutil.copy(newer(deb, directory, break_check=True), machine.directory / "newer.deb")
    said = machine("dpkg --install /media/newer.deb 2>&1").stdout
    asked = machine.asked()
    claim(not any("restart" in line for line in asked), f"a program that refuses the configuration: {asked}")
    claim("tlsward.service goes on with the old program" in said, f"the upgrade says so: {said}")
    machine("kill $(cat /run/pid-tlsward.service /run/pid-tlsward@bad.service); rm /run/units /run/pid-*")


def remove(machine):
    print("  remove")
    machine("dpkg --remove tlsward >/dev/null")
    asked = machine.asked()
    stopped = "stop tlsward-billing.socket tlsward.service tlsward@*.service"
    claim(asked[:1] == [stopped], f"it stops before it goes, its sockets first: {asked}")
    claim(not machine.exists("/usr/bin/tlsward"), "the program is gone")
    claim(machine.exists("/etc/tlsward/config.toml"), "the configuration is kept until the purge")

    print("  purge")
    said = machine("dpkg --purge tlsward 2>&1").stdout
    claim(not machine.exists("/etc/tlsward/config.toml"), "the purge takes the configuration")
    claim(machine.exists("/etc/tlsward/certs/tls.key"), "and leaves keys")
    claim("left in place" in said and "/etc/tlsward" in said, f"and says so: {said}")
    claim(not machine.exists(ENABLED), "it is enabled no more")
    left = machine("find /etc/systemd /var/lib/systemd -name '*tlsward*'").stdout
    claim(not left, f"no link of systemd is left: {left}")


def purge_without_keys(machine, deb):
    machine("rm -r /etc/tlsward")
    machine(f"dpkg --install /mnt/{deb.name} >/dev/null")
    claim(not machine.exists(ENABLED), "after a purge it is not enabled by being installed")
    said = machine("dpkg --purge tlsward 2>&1").stdout
    claim(not machine.exists("/etc/tlsward") and "left in place" not in said, f"a purge leaves no trace: {said}")
    machine.asked()


def rpm_s_turn(machine, rpm):
    print("  rpm")
    machine(f"rpm --initdb; rpm --install --nodeps /mnt/{rpm.name} 2>&1")
    asked = machine.asked()
    claim(asked and all("daemon-reload" in line for line in asked), f"the .rpm starts nothing: {asked}")
    claim(machine.mode("/etc/tlsward") == "750 root:tlsward", "/etc/tlsward of the .rpm")
    claim("no services" in machine("tlsward check").stdout, "the .rpm's program and configuration work")
    machine("echo '# mine' >>/etc/tlsward/config.toml; rpm --upgrade --force --nodeps /mnt/" + rpm.name)
    claim("# mine" in machine("cat /etc/tlsward/config.toml").stdout, "an edited configuration stays")
    machine.asked()
    machine("rpm --erase tlsward 2>&1")
    asked = machine.asked()
    claim(asked[:1] and asked[0].startswith("stop tlsward-billing.socket tlsward.service"), f"it stops: {asked}")
    claim(not machine.exists("/usr/bin/tlsward"), "the program of the .rpm is gone")


def main():
    if os.geteuid() != 0:
        raise SystemExit("tests/package/check.py: needs root, for a file system of its own")
    built_in = pathlib.Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT / "target"
    built = built_in / "release/tlsward"
    helped = run(built, "--help").stdout
    listed = helped.split("Commands:\n")[1].split("\n\n")[0]
    commands = [name for name in re.findall(r"^  (\w+)", listed, re.M) if name != "help"]
    claim("run" in commands and "man" not in commands, f"the commands were read: {commands}")

    deb, dbgsym, rpm = one("tlsward_*.deb"), one("tlsward-dbgsym_*.ddeb"), one("tlsward-*.rpm")
    print("contents")
    look_at_deb(deb, commands)
    look_at_program(deb, dbgsym, built)
    look_at_manual(deb, commands)
    look_at_rpm(rpm, deb)
    look_at_sbom(built)
    look_at_tarball()
    print("made again")
    sums_and_sameness(built_in)

    print("in a throw-away root")
    with tempfile.TemporaryDirectory() as directory:
        (pathlib.Path(directory) / "machine").mkdir()
        machine = Machine(pathlib.Path(directory) / "machine")
        try:
            install(machine, deb)
            upgrade(machine, deb, pathlib.Path(directory))
            remove(machine)
            purge_without_keys(machine, deb)
            rpm_s_turn(machine, rpm)
        finally:
            machine.end()
    print(f"{done} claims, {len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
