#!/usr/bin/env python3
"""Installs the package in a booted Debian, and holds it against what scenarios.py says.

check.py [options] [SCENARIO…]      all scenarios, or those named; the exit code is 1 if one fails
  --deb FILE           the package; without it the one in target/package (packaging/build.sh deb)
  --release NAME       trixie (default: systemd 257) or bookworm (252)
  --short              only those of the short list
  --minutes N          how long all may take (20); what did not get its turn is named, and is a failure
  --optional-minutes N those outside of the short list begin only within this time; what is left out is named
  --tcg                emulate the processor, even where it can be shared
  --list               names the scenarios
  --shell              boots, and gives you the guest's console; "poweroff" or Ctrl-A X ends it

Needs qemu-system-x86, mmdebstrap, e2fsprogs and root. Images are kept in target/vm; what the guest's
journal and console said of a failed scenario is in target/vm/logs.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback

import image
import machine
import scenarios

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / "target/vm"
LOGS = CACHE / "logs"
NEWER = "9:9.9.9-1"


def arguments():
    usage = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    usage.add_argument("scenarios", nargs="*", metavar="SCENARIO")
    usage.add_argument("--deb", type=pathlib.Path)
    usage.add_argument("--release", default="trixie", choices=["trixie", "bookworm"])
    usage.add_argument("--short", action="store_true")
    usage.add_argument("--minutes", type=float, default=20)
    usage.add_argument("--optional-minutes", type=float)
    usage.add_argument("--tcg", action="store_true")
    usage.add_argument("--list", action="store_true")
    usage.add_argument("--shell", action="store_true")
    given = usage.parse_args()
    unknown = set(given.scenarios) - {each.name for each in scenarios.ALL}
    if unknown:
        usage.error(f"no such scenario: {', '.join(sorted(unknown))}")
    return given


def package():
    found = list(ROOT.glob("target/package/tlsward_*.deb"))
    if len(found) != 1:
        raise SystemExit(f"{len(found)} packages in target/package; packaging/build.sh deb makes one")
    return found[0]


def files(deb, directory):
    """What the guest sees as /files: its tools, the package, and the same under a newer version."""
    shutil.copytree(HERE / "guest", directory / "guest")
    shutil.copytree(ROOT / "docs", directory / "docs")
    shutil.copy(deb, directory / "tlsward.deb")
    with tempfile.TemporaryDirectory() as unpacked:
        subprocess.run(["dpkg-deb", "-R", deb, unpacked], check=True)
        control = pathlib.Path(unpacked, "DEBIAN/control")
        control.write_text(re.sub(r"^Version: .*", f"Version: {NEWER}", control.read_text(), flags=re.M))
        newer = directory / "newer.deb"
        # -Zgzip: what takes the least time here.
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "-b", unpacked, newer],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip


def main():
    given = arguments()
    if given.list:
        for each in scenarios.ALL:
            print(f"{'short ' if each.short else '      '}{each.name:24} {each.claim}")
        return 0
    began = time.monotonic()
    base = image.image(given.release, CACHE)
    imaged = time.monotonic() - began
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    tcg = given.tcg or not machine.kvm()
    how = "emulated: no KVM" if tcg else "KVM"
    deadline = began + 60 * given.minutes
    with tempfile.TemporaryDirectory(prefix="files-", dir=CACHE) as directory:
        directory = pathlib.Path(directory)
        files(given.deb or package(), directory)
        if given.shell:
            return machine.console(base, directory, tcg)
        with machine.Machine(base, directory, LOGS, tcg, deadline) as vm:
            booted = time.monotonic() - began - imaged
            print(f"{given.release}, {how}: image {imaged:.0f} s, boot {booted:.0f} s", flush=True)
            wrong, left_out = play(vm, given, began, deadline)
    if left_out:
        print(f"not run, for want of time: {', '.join(left_out)}")
    print(f"{given.release}, {how}: {time.monotonic() - began:.0f} s; logs of failures: {LOGS}")
    return 1 if wrong else 0


def play(vm, given, began, deadline):
    """Runs the scenarios; how many failed, and the names of those that were left out."""
    passed, failed, left_out = 0, 0, []
    for each in scenarios.ALL:
        if given.scenarios and each.name not in given.scenarios and not each.always:
            continue
        if given.short and not each.short:
            continue
        since = time.monotonic()
        if given.optional_minutes is not None and since > began + 60 * given.optional_minutes:
            if not each.short:
                left_out.append(each.name)
                continue
        try:
            if since > deadline:
                raise machine.Failed("no time was left for it")
            seen = each.run(vm)
            passed += 1
            print(f"ok     {time.monotonic() - since:5.1f} s  {each.name}: {seen}", flush=True)
        except Exception as error:
            failed += 1
            text = str(error) if isinstance(error, machine.Failed) else traceback.format_exc()
            print(f"FAILED {time.monotonic() - since:5.1f} s  {each.name}: {text}", flush=True)
            keep_logs(vm, each.name)
            if each.always:
                break
    print(f"{passed} passed, {failed} failed, {len(left_out)} skipped")
    return failed, left_out


def keep_logs(vm, name):
    try:
        journal = vm.run("journalctl -b -o short-precise --no-pager | tail -n 600; systemctl status --no-pager 'tlsward*'")
        (LOGS / f"{name}.journal").write_text(journal.out)
    except (machine.Failed, OSError) as error:
        print(f"       no journal: {error}")


if __name__ == "__main__":
    sys.exit(main())
