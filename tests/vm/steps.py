"""What scenarios are told with: steps in the guest, and what is expected of them."""

import json
import pathlib
import re
import time

from machine import Failed

DOCS = pathlib.Path(__file__).resolve().parent.parent.parent / "docs"


def expect(condition, text):
    if not condition:
        raise Failed(text)


def expect_equal(seen, wanted, what):
    expect(seen == wanted, f"{what}: {seen!r}, not {wanted!r}")


ECHO = """
[services.echo]
listen = "127.0.0.1:7001"
upstream = "upstream.test:8443"
"""
MORE = ECHO.replace("echo", "more").replace("7001", "7002")
# For a second service by a reload: the sandbox takes the ports that are in use, unless it is told more.
ROOM = """
[sandbox]
bind_ports = ["7001-7099"]
"""
CONFIG = """
[admin]
listen = "unix:/run/tlsward/admin.sock"

[defaults.tls]
ca = "certs/ca.crt"
cert = "certs/client.crt"
key = "certs/client.key"
"""


def show(vm, *properties, unit="tlsward"):
    """The values of a unit's properties, in this order; of one property, its value."""
    lines = vm.ok(f"systemctl show {unit} -p {','.join(properties)}").splitlines()
    values = dict(line.split("=", 1) for line in lines)
    found = [values[each] for each in properties]
    return found[0] if len(found) == 1 else found


def start_upstream(vm):
    """The server behind all services of the tests, on port 8443, for as long as the guest is up."""
    # After=: systemd forgets how a unit ended that is stopped and that no other unit speaks of.
    vm.ok(
        "systemd-run --quiet --unit=upstream -p After=tlsward.service"
        " python3 /files/guest/upstream.py 8443"
    )
    vm.until("ss -Htln sport = :8443 | grep -q .")


def pid(vm, unit="tlsward"):
    return int(show(vm, "MainPID", unit=unit))


def configure(vm, text, name="config"):
    vm.write(f"/etc/tlsward/{name}.toml", text, mode="0640", owner="root:tlsward")


def drop_in(vm, text, unit="tlsward.service"):
    vm.write(f"/etc/systemd/system/{unit}.d/test.conf", text)
    vm.ok("systemctl daemon-reload")


def documented(document, heading):
    """The first block of code below a heading of docs/."""
    below = (DOCS / document).read_text().split(f"# {heading}\n", 1)[1]
    return re.search(r"^```\w*\n(.*?)^```", below, re.S | re.M)[1]


def fresh(vm, config=CONFIG + ECHO, unit_changes="", start=True):
    """tlsward started anew (or only stopped), with this configuration and these changes of its unit, and no others."""
    vm.ok(
        "systemctl stop 'tlsward*' load.service hold.service 2>/dev/null;"
        " rm -rf /etc/systemd/system/tlsward* /etc/systemd/system/sockets.target.wants; "
        " systemctl daemon-reload; systemctl reset-failed;"
        " systemctl clean --what=fdstore tlsward.service 2>/dev/null; true",
        seconds=60,
    )
    if unit_changes:
        drop_in(vm, unit_changes)
    configure(vm, config)
    if start:
        vm.ok("systemctl start tlsward", seconds=60)


def call(vm, port=7001):
    """What a caller is answered: "client hello", where client is the name in tlsward's certificate."""
    return vm.ok(f"python3 /files/guest/caller.py once {port}", seconds=60)


def call_fails(vm, port=7001):
    """How a call fails: one word."""
    return vm.fails(f"python3 /files/guest/caller.py once {port}", seconds=60).strip()


def new_client(vm, name):
    """A new key and certificate for tlsward with this name in it, put in place by renames."""
    vm.ok(
        f"sh /files/guest/pki.sh client client {name} && cd /etc/tlsward/certs"
        " && install -m 0640 -g tlsward /pki/client.key client.key.new"
        " && install -m 0640 -g tlsward /pki/client.crt client.crt.new"
        " && mv client.key.new client.key && mv client.crt.new client.crt"
    )


def hold(vm, seconds):
    """A connection that stays open for so long, with a line now and then; /run/hold tells of it."""
    vm.ok(
        "rm -f /run/hold; systemd-run --quiet --collect --unit=hold -p StandardOutput=file:/run/hold"
        f" python3 /files/guest/caller.py hold 7001 {seconds}"
    )
    vm.until("test -s /run/hold")


def status(vm):
    """What `tlsward status --json` says."""
    return json.loads(vm.ok("tlsward status --json"))


def journal(vm, *matches):
    """The entries of the journal that match, as maps."""
    lines = vm.ok(f"journalctl -q --no-pager -o json {' '.join(matches)}").splitlines()
    return [json.loads(line) for line in lines]


class Load:
    """Callers that call all the time, during a `with`; then what came of it."""

    def __init__(self, vm, ports):
        self.vm, self.ports = vm, ports

    def __enter__(self):
        self.vm.ok(
            "rm -f /run/load.json; systemd-run --quiet --collect --unit=load -p TimeoutStopSec=120"
            f" python3 /files/guest/caller.py load /run/load.json {' '.join(map(str, self.ports))}"
        )
        self.vm.until("test $(ss -Htn state established dport = :8443 or sport = :8443 | wc -l) -gt 0")
        self.some_calls()
        return self

    def some_calls(self):
        """A while in which callers get answers."""
        for port in self.ports:
            call(self.vm, port)
        time.sleep(1 * self.vm.patience)

    def now(self):
        return float(self.vm.ok("date +%s.%N"))

    def __exit__(self, kind, *_):
        if kind:
            self.vm.run("systemctl kill -s SIGKILL load")
            return
        self.some_calls()
        self.vm.ok("systemctl stop load", seconds=120)
        self.calls = json.loads(self.vm.ok("cat /run/load.json"))

    def failures(self, since=0):
        return [each for each in self.calls if each["failure"] and each["began"] >= since]

    def all_well(self, event, since=0):
        """Fails if a call failed that began at `since` or later, or if there were none around `event`."""
        failures = self.failures(since)
        expect(not failures, f"{len(failures)} of {len(self.calls)} calls failed, the first: {failures[:3]}")
        for port in self.ports:
            ended = [each["ended"] for each in self.calls if each["port"] == port and not each["failure"]]
            expect(min(ended) < event, f"port {port}: no call was answered before")
            expect(max(ended) > event, f"port {port}: no call was answered after")
        longest = max(each["ended"] - each["began"] for each in self.calls)
        return f"{len(self.calls)} calls, 0 refused, 0 broken, the longest {longest:.1f} s"
