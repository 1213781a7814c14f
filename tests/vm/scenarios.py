"""What a booted systemd must see of the package. Each scenario says in its docstring what it claims.

They run in this order, in one guest; each begins with a running tlsward of its own configuration,
except those that say otherwise.
"""

import contextlib
import json
import pathlib
import re
import shlex
import time

from machine import Failed

ALL = []
DOCS = pathlib.Path(__file__).resolve().parent.parent.parent / "docs"


class Scenario:
    def __init__(self, run, short, always, release):
        self.run, self.short, self.always, self.release = run, short, always, release
        self.name = run.__name__
        self.claim = run.__doc__.splitlines()[0]


def scenario(short=False, always=False, release=None):
    """`short`: in the short list. `always`: what others build on. `release`: only there."""

    def add(run):
        ALL.append(Scenario(run, short, always, release))
        return run

    return add


def expect(condition, text):
    if not condition:
        raise Failed(text)


def expect_equal(seen, wanted, what):
    expect(seen == wanted, f"{what}: {seen!r}, not {wanted!r}")


# --- What scenarios are told with --------------------------------------------------------------

ECHO = """
[services.echo]
listen = "127.0.0.1:7001"
upstream = "upstream.test:8443"
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


def fresh(vm, config=CONFIG + ECHO, unit_changes=""):
    """tlsward started anew, with this configuration and these changes of its unit, and no others."""
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


# --- Installation ---------------------------------------------------------------------------------


@scenario(short=True, always=True)
def install(vm):
    """Installing starts nothing and enables nothing; the user, the directories and the manual are there."""
    expect_equal(vm.ok("systemctl is-system-running --wait || true"), "running", "the guest")
    vm.ok("apt-get install -q -y /files/tlsward.deb", seconds=120)
    expect_equal(vm.run("systemctl is-enabled tlsward").out.strip(), "disabled", "is-enabled")
    expect_equal(show(vm, "ActiveState"), "inactive", "ActiveState")
    vm.ok("getent passwd tlsward && getent group tlsward && test -f /etc/tlsward/config.toml")
    version = vm.ok("tlsward --version")
    # What the other scenarios need.
    vm.ok("cd /tmp && sh /files/guest/pki.sh ca && sh /files/guest/pki.sh server upstream.test localhost")
    vm.ok("systemd-run --quiet --unit=upstream python3 /files/guest/upstream.py 8443")
    vm.ok("install -m 0644 /pki/ca.crt /etc/tlsward/certs")
    new_client(vm, "client")
    return f"{version}; disabled, inactive"


@scenario(short=True)
def verify_units(vm):
    """systemd-analyze verify has nothing to say of the units; security gives 1.2 at most."""
    for unit in ("tlsward.service", "tlsward.socket", "tlsward@x.service"):
        done = vm.run(f"systemd-analyze verify --man=no {unit}")
        said = (done.out + done.err).strip()
        expect(done.code == 0 and not said, f"{unit}: {said}")
    scores = []
    for unit in ("tlsward.service", "tlsward@x.service"):
        printed = vm.ok(f"systemd-analyze security --no-pager {unit}")
        score = float(re.search(r"Overall exposure level for \S+: ([\d.]+)", printed)[1])
        expect(score <= 1.2, f"{unit}: {score}\n{printed}")
        scores.append(f"{unit} {score}")
    return f"nothing to complain of; exposure {', '.join(scores)}"


@scenario(short=True)
def start(vm):
    """`systemctl start` returns when the port answers, and the status says what is served."""
    fresh(vm)
    answer = vm.ok("systemctl restart tlsward; python3 /files/guest/caller.py once 7001", seconds=60)
    expect_equal(answer, "client hello", "the call right after start")
    kind, state, text = show(vm, "Type", "ActiveState", "StatusText")
    expect_equal(state, "active", "ActiveState")
    expect(text, "no StatusText")
    return f"Type={kind}; {text}"
