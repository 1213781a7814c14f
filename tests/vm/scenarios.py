"""What a booted systemd must see of the package. Each scenario says in its docstring what it claims.

They run in this order, in one guest; each begins with a running tlsward of its own configuration,
except those that say otherwise.
"""

import json
import re
import time

from machine import Failed
from steps import (
    CONFIG,
    ECHO,
    MORE,
    ROOM,
    Load,
    call,
    call_fails,
    configure,
    documented,
    drop_in,
    expect,
    expect_equal,
    fresh,
    hold,
    journal,
    new_client,
    pid,
    show,
    start_upstream,
    status,
)

ALL = []


class Scenario:
    def __init__(self, run, short, always):
        self.run, self.short, self.always = run, short, always
        self.name = run.__name__
        self.claim = run.__doc__.splitlines()[0]


def scenario(short=False, always=False):
    """`short`: in the short list. `always`: what the others build on."""

    def add(run):
        ALL.append(Scenario(run, short, always))
        return run

    return add


# --- Installation ---------------------------------------------------------------------------------


@scenario(short=True, always=True)
def install(vm):
    """Installing starts nothing and enables nothing; user, directories, configuration, manual are there."""
    expect_equal(vm.ok("systemctl is-system-running --wait || true"), "running", "the guest")
    vm.ok("apt-get install -q -y /files/tlsward.deb", seconds=120)
    expect_equal(vm.run("systemctl is-enabled tlsward").out.strip(), "disabled", "is-enabled")
    expect_equal(show(vm, "ActiveState"), "inactive", "ActiveState")
    vm.ok("getent passwd tlsward && getent group tlsward && test -f /etc/tlsward/config.toml")
    vm.ok("test -f /usr/share/man/man1/tlsward.1.gz && test -f /usr/share/bash-completion/completions/tlsward")
    expect_equal(vm.ok("stat -c '%U %G %a' /etc/tlsward /etc/tlsward/certs"), "\n".join(["root tlsward 750"] * 2), "owners")
    version = vm.ok("tlsward --version")
    # What the other scenarios need.
    vm.ok("cd /tmp && sh /files/guest/pki.sh ca && sh /files/guest/pki.sh server upstream.test localhost")
    start_upstream(vm)
    vm.ok("install -m 0644 /pki/ca.crt /etc/tlsward/certs")
    new_client(vm, "client")
    return f"{version}; disabled, inactive"


@scenario()
def verify_units(vm):
    """systemd-analyze verify has nothing to say of the units; security gives 1.2 at most."""
    # The copies are named as an operator names them.
    vm.ok("cp /usr/share/doc/tlsward/examples/tlsward.socket /etc/systemd/system/tlsward-billing.socket")
    for unit in ("tlsward.service", "tlsward-billing.socket", "tlsward@x.service"):
        # The manual's page is there, `man` is not.
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


# --- Start, status, reload ------------------------------------------------------------------------


@scenario(short=True)
def start(vm):
    """`systemctl start` returns when the port answers, and the status says what is served."""
    fresh(vm)
    vm.ok("systemctl stop tlsward")
    answer = vm.ok("systemctl start tlsward; python3 /files/guest/caller.py once 7001", seconds=60)
    expect_equal(answer, "client hello", "the call right after start")
    kind, state, text = show(vm, "Type", "ActiveState", "StatusText")
    expect_equal(state, "active", "ActiveState")
    expect(text, "no StatusText")
    shown = vm.ok("systemctl status --no-pager tlsward")
    expect(f'Status: "{text}"' in shown, shown)
    return f"Type={kind}; Status: {text}"


@scenario()
def sandbox(vm):
    """Within the unit's sandbox the process still locks itself in, and runs as user tlsward."""
    fresh(vm)
    said = status(vm)["sandbox"]
    expect_equal(said["state"], "on", f"sandbox {said}")
    process = pid(vm)
    lines = vm.ok(f"grep -E '^(Uid|NoNewPrivs|Seccomp|CapEff|CapBnd):' /proc/{process}/status")
    facts = dict(re.split(r":\s+", line, maxsplit=1) for line in lines.splitlines())
    user = vm.ok("id -u tlsward")
    expect_equal(facts["Uid"].split(), [user] * 4, "Uid")
    expect_equal((facts["NoNewPrivs"], facts["Seccomp"]), ("1", "2"), "NoNewPrivs, Seccomp")
    expect_equal({facts["CapEff"], facts["CapBnd"]}, {"0" * 16}, "capabilities")
    expect_equal(call(vm), "client hello", "the call")
    return f"{said}; no capabilities; user tlsward"


@scenario(short=True)
def reload_good(vm):
    """When `systemctl reload` returns, the new service serves, in the same process."""
    fresh(vm, ROOM + CONFIG + ECHO)
    before = pid(vm)
    configure(vm, ROOM + CONFIG + ECHO + MORE)
    answer = vm.ok("systemctl reload tlsward; python3 /files/guest/caller.py once 7002", seconds=60)
    expect_equal(answer, "client hello", "the call right after reload")
    expect_equal(pid(vm), before, "MainPID")
    return f"{answer!r} on the new port; Status: {show(vm, 'StatusText')}"


@scenario(short=True)
def reload_bad(vm):
    """A refused configuration fails `systemctl reload`, the status says why, and the old one goes on."""
    fresh(vm)
    before = pid(vm)
    # The file's own watcher must not be the one that answers: the reload does.
    configure(vm, CONFIG + ECHO.replace("upstream.test:8443", "upstream.test"))
    vm.fails("systemctl reload tlsward", seconds=60)
    text, state = show(vm, "StatusText", "ActiveState")
    expect("refused" in text and "upstream" in text, f"StatusText: {text}")
    expect_equal((pid(vm), state, call(vm)), (before, "active", "client hello"), "the old one")
    configure(vm, CONFIG + ECHO)
    vm.ok("systemctl reload tlsward", seconds=60)
    mended = show(vm, "StatusText")
    expect("refused" not in mended, f"StatusText after mending: {mended}")
    return f"Status: {text}"


@scenario()
def reload_by_signal(vm):
    """SIGHUP alone reloads: the new service serves, and the unit is active again after "reloading"."""
    fresh(vm, ROOM + CONFIG + ECHO)
    configure(vm, ROOM + CONFIG + ECHO + MORE)
    vm.ok("systemctl kill -s HUP tlsward")
    vm.until("python3 /files/guest/caller.py once 7002")
    vm.until("systemctl is-active tlsward")
    vm.until("systemctl show -P StatusText tlsward | grep '^2 of 2 '")
    return f"active; Status: {show(vm, 'StatusText')}"


@scenario()
def reload_beyond_sandbox(vm):
    """A port that the sandbox does not hold is refused by a reload, which says so; a restart serves it."""
    fresh(vm)
    configure(vm, CONFIG + ECHO + MORE)
    vm.fails("systemctl reload tlsward", seconds=60)
    text = show(vm, "StatusText")
    expect("sandboxed" in text and "7002" in text, f"StatusText: {text}")
    with Load(vm, [7001]) as load:
        at = load.now()
        vm.ok("systemctl restart tlsward", seconds=60)
    expect_equal(call(vm, 7002), "client hello", "the call after a restart")
    return f"Status: {text}; restarted: {load.all_well(at)}"


@scenario()
def degraded(vm):
    """A certificate that is missing keeps neither the other services nor the start waiting for ever."""
    more = MORE + '[services.more.tls]\ncert = "certs/later.crt"\nkey = "certs/later.key"\n'
    began = time.monotonic()
    fresh(vm, CONFIG + ECHO + more)
    took = time.monotonic() - began
    text = show(vm, "StatusText")
    expect("degraded" in text and "more" in text, f"StatusText: {text}")
    expect_equal((call(vm), call_fails(vm, 7002)), ("client hello", "refused"), "the two services")
    vm.ok("sh /files/guest/pki.sh client later later && install -m 0640 -g tlsward /pki/later.* /etc/tlsward/certs")
    expect_equal(
        vm.until("python3 /files/guest/caller.py once 7002"), "later hello", "the call after the files came"
    )
    vm.until("systemctl show tlsward -p StatusText | grep -qv degraded", seconds=10)
    vm.ok("rm /etc/tlsward/certs/later.*")
    return f"started in {took:.0f} s; Status: {text}; and served when the files came"


# --- Rotation -------------------------------------------------------------------------------------


@scenario()
def rotation(vm):
    """Certificates of group tlsward replaced by rename: new connections use them within a second."""
    fresh(vm)
    expect_equal(vm.ok("stat -c '%U %G %a' /etc/tlsward/certs/client.key"), "root tlsward 640", "the key")
    expect_equal(call(vm), "client hello", "before")
    new_client(vm, "renewed")
    began = time.monotonic()
    vm.until("python3 /files/guest/caller.py once 7001 | grep renewed", seconds=5)
    took = time.monotonic() - began
    limit = 1 + 1 * vm.patience
    expect(took < limit, f"{took:.1f} s")
    new_client(vm, "client")
    return f"seen by a caller {took:.1f} s after (a call takes its time, too)"


# --- Ends -----------------------------------------------------------------------------------------


@scenario()
def exit_codes(vm):
    """2 for mistakes: not tried again, and the journal has the place. 0 for a stop. 3 for a forced one."""
    fresh(vm)
    vm.ok("systemctl stop tlsward")
    expect_equal(show(vm, "Result", "ExecMainStatus", "ActiveState"), ["success", "0", "inactive"], "after a stop")
    configure(vm, CONFIG + ECHO.replace("upstream.test:8443", "upstream.test"))
    vm.fails("systemctl start tlsward", seconds=60)
    found = show(vm, "Result", "ExecMainStatus", "ActiveState", "NRestarts")
    expect_equal(found, ["exit-code", "2", "failed", "0"], "after mistakes")
    said = vm.ok("journalctl -u tlsward -n 30 -o cat --no-pager")
    place = re.search(r"/etc/tlsward/config.toml:\d+:\d+: .*", said)
    expect(place, f"no place in the journal:\n{said}")
    fresh(vm, 'shutdown_timeout = "1s"\n' + CONFIG + ECHO)
    hold(vm, seconds=300)
    vm.ok("systemctl stop tlsward", seconds=60)
    found = show(vm, "Result", "ExecMainStatus", "ActiveState")
    expect_equal(found, ["success", "3", "inactive"], "with a connection left")
    return f"0, 2 ({place[0]}), 3"


@scenario()
def long_drain(vm):
    """A drain longer than TimeoutStopSec= asks for more time, and the open connection ends by itself."""
    held = 8 * vm.patience
    fresh(
        vm,
        f'shutdown_timeout = "{3 * held}s"\n' + CONFIG + ECHO,
        "[Service]\nTimeoutStopSec=3\n",
    )
    hold(vm, held)
    began = time.monotonic()
    vm.ok("systemctl stop tlsward", seconds=3 * held)
    took = time.monotonic() - began
    end = vm.until("tail -n 1 /run/hold | grep -E '^[a-z]+$'")
    found = show(vm, "Result", "ExecMainStatus")
    expect_equal((found, end), (["success", "0"], "ended"), "the stop, and how the connection ended")
    expect(took > 5, f"the stop took {took:.1f} s only")
    return f"stop took {took:.0f} s with TimeoutStopSec=3, code 0; the connection's own end"


@scenario(short=True)
def killed(vm):
    """SIGKILL under load: started again, and each call that begins after it is answered, by kept listeners."""
    fresh(vm)
    before = pid(vm)
    with Load(vm, [7001]) as load:
        at = float(vm.ok(f"kill -KILL {before}; while kill -0 {before} 2>&-; do :; done; date +%s.%N"))
        vm.until(f"test $(systemctl show -P MainPID tlsward) -gt 0 -a $(systemctl show -P MainPID tlsward) != {before}")
        vm.until("systemctl is-active tlsward", seconds=30)
    after = pid(vm)
    expect(after != before, "the same process")
    refused = [each for each in load.failures() if each["failure"] == "refused"]
    expect(not refused, f"{len(refused)} were refused")
    # Those that were open break, which nobody can help.
    text = load.all_well(at, since=at)
    expect_equal(show(vm, "NRestarts"), "1", "NRestarts")
    return f"{text}; of those that were open {len(load.failures())} broke"


@scenario(short=True)
def watchdog(vm):
    """One worker thread that stands still: systemd kills and starts again, and callers are served."""
    fresh(vm, unit_changes=f"[Service]\nWatchdogSec={3 * vm.patience}\n")
    before = pid(vm)
    vm.ok(
        "systemd-run --quiet --collect --unit=freeze --service-type=exec"
        f" python3 /files/guest/freeze.py {before} worker-"
    )
    frozen = vm.until("journalctl -u freeze -o cat --no-pager | grep -E '^[0-9]+$'")
    expect_equal(vm.ok(f"awk '/^State/ {{print $2}}' /proc/{before}/task/{frozen}/status"), "t", "its state")
    began = time.monotonic()
    vm.until(f"test $(systemctl show -P MainPID tlsward) != {before}", seconds=60, every=0.5)
    vm.until("systemctl is-active tlsward", seconds=30)
    took = time.monotonic() - began
    said = vm.ok("journalctl -u tlsward -o cat --no-pager | grep -i watchdog | tail -n 3")
    expect(f"Watchdog timeout (limit {3 * vm.patience}s)!" in said, said)
    expect_equal(call(vm), "client hello", "the call afterwards")
    vm.run("systemctl stop freeze")
    return f"thread {frozen} stopped; {took:.0f} s later another process serves"


# --- Restarts under load --------------------------------------------------------------------------


@scenario(short=True)
def restart_under_load(vm):
    """`systemctl restart`, twice, under load: no call refused, none broken; listeners are kept by systemd."""
    fresh(vm, CONFIG + ECHO + MORE)
    before = pid(vm)
    stored = int(show(vm, "NFileDescriptorStore"))
    expect(stored >= 2, f"{stored} descriptors are stored")
    with Load(vm, [7001, 7002]) as load:
        vm.ok("systemctl restart tlsward", seconds=60)
        load.some_calls()
        at = load.now()
        vm.ok("systemctl restart tlsward", seconds=60)
    expect(pid(vm) != before, "the same process")
    return f"{load.all_well(at)}; {stored} descriptors stored"


@scenario()
def removed_listener(vm):
    """A listener that the new configuration does not have is not kept: its port refuses after a restart."""
    fresh(vm, CONFIG + ECHO + MORE)
    expect_equal(call(vm, 7002), "client hello", "before")
    configure(vm, CONFIG + ECHO)
    vm.ok("systemctl restart tlsward", seconds=60)
    expect_equal((call(vm), call_fails(vm, 7002)), ("client hello", "refused"), "after")
    vm.ok("systemctl stop tlsward", seconds=60)
    expect_equal(call_fails(vm), "refused", "after a stop")
    return "refused; and after a stop the other, too"


@scenario()
def socket_activation(vm):
    """The first caller starts the service; a restart of it under load refuses and breaks no call."""
    socket = vm.ok("cat /usr/share/doc/tlsward/examples/tlsward.socket")
    fresh(vm, CONFIG + ECHO.replace("127.0.0.1:7001", "systemd:billing"), start=False)
    vm.write("/etc/systemd/system/tlsward-billing.socket", socket)
    vm.ok("systemctl daemon-reload && systemctl start tlsward-billing.socket")
    expect_equal(show(vm, "ActiveState"), "inactive", "before the first caller")
    expect_equal(call(vm), "client hello", "the first call")
    expect_equal(show(vm, "ActiveState"), "active", "after the first caller")
    with Load(vm, [7001]) as load:
        at = load.now()
        vm.ok("systemctl restart tlsward", seconds=60)
    text = load.all_well(at)
    vm.ok("systemctl stop tlsward-billing.socket tlsward", seconds=60)
    return f"started by a caller; {text}"


@scenario()
def instances(vm):
    """tlsward@a and tlsward@b, each with its configuration and admin socket; a restart of one leaves the other."""
    fresh(vm)
    for name, port in (("a", "7011"), ("b", "7012")):
        own = CONFIG.replace("/run/tlsward/", f"/run/tlsward-{name}/") + ECHO.replace("7001", port)
        configure(vm, own, name)
    vm.ok("systemctl start tlsward@a tlsward@b", seconds=60)
    expect_equal([call(vm, port) for port in (7001, 7011, 7012)], ["client hello"] * 3, "the calls")
    other = pid(vm, "tlsward@b")
    with Load(vm, [7011, 7012]) as load:
        at = load.now()
        vm.ok("systemctl restart tlsward@a", seconds=60)
    expect_equal(pid(vm, "tlsward@b"), other, "MainPID of b")
    text = load.all_well(at)
    for name in ("a", "b"):
        said = vm.ok(f"tlsward status --json -c /etc/tlsward/{name}.toml")
        expect_equal(json.loads(said)["pid"] if "pid" in said else pid(vm, f"tlsward@{name}"), pid(vm, f"tlsward@{name}"), "pid")
    vm.ok("systemctl stop tlsward@a tlsward@b && rm /etc/tlsward/[ab].toml", seconds=60)
    return text


# --- Credentials ----------------------------------------------------------------------------------

CREDENTIAL = re.sub(r'cert = .*\nkey = .*\n', 'credential = "billing"\n', CONFIG)


@scenario()
def credential(vm):
    """LoadCredential=: a key that only root can read carries traffic; a restart brings the renewed one."""
    vm.ok(
        "sh /files/guest/pki.sh client billing billing-1 && install -d -m 0700 /etc/keys"
        " && cat /pki/billing.key /pki/billing.crt > /etc/keys/billing.pem && chmod 0600 /etc/keys/billing.pem"
    )
    fresh(vm, CREDENTIAL + ECHO, "[Service]\nLoadCredential=billing:/etc/keys/billing.pem\n")
    expect_equal(call(vm), "billing-1 hello", "the call")
    vm.ok(
        "sh /files/guest/pki.sh client billing billing-2"
        " && cat /pki/billing.key /pki/billing.crt > /etc/keys/billing.pem"
    )
    vm.ok("systemctl restart tlsward", seconds=60)
    expect_equal(call(vm), "billing-2 hello", "the call after a restart")
    return "billing-1, then billing-2"


@scenario()
def encrypted_credential(vm):
    """LoadCredentialEncrypted=: the file on disk is of no use without the host's key, and traffic flows."""
    vm.ok(
        "systemd-creds setup && sh /files/guest/pki.sh client billing sealed && install -d -m 0700 /etc/keys"
        " && cat /pki/billing.key /pki/billing.crt |"
        " systemd-creds encrypt --with-key=host --name=billing - /etc/keys/billing.cred",
        seconds=60,
    )
    vm.fails("grep -q 'PRIVATE KEY' /etc/keys/billing.cred", code=1)
    fresh(vm, CREDENTIAL + ECHO, "[Service]\nLoadCredentialEncrypted=billing:/etc/keys/billing.cred\n")
    expect_equal(call(vm), "sealed hello", "the call")
    return "sealed hello"


# --- What it says, and what can be got out of it --------------------------------------------------


@scenario()
def journald(vm):
    """A failed handshake is in the journal with its service, reason, side and phase as fields, as a warning."""
    wrong = '[services.wrong]\nlisten = "127.0.0.1:7003"\nupstream = "127.0.0.1:8443"\n'
    wrong += '[services.wrong.tls]\nserver_name = "other.test"\n'
    fresh(vm, CONFIG + ECHO + wrong)
    expect_equal(call_fails(vm, 7003), "reset", "the call")
    vm.until("test -n \"$(journalctl -q --no-pager TLSWARD_SERVICE=wrong TLSWARD_REASON=name_mismatch)\"")
    entry = journal(vm, "TLSWARD_SERVICE=wrong", "TLSWARD_REASON=name_mismatch")[-1]
    wanted = ("PRIORITY", "TLSWARD_SERVICE", "TLSWARD_REASON", "TLSWARD_SIDE", "TLSWARD_PHASE", "_SYSTEMD_UNIT")
    found = {key: entry.get(key) for key in wanted}
    expect_equal(
        found,
        dict(zip(wanted, ("4", "wrong", "name_mismatch", "upstream", "handshake", "tlsward.service"))),
        "fields",
    )
    expect(not vm.run("journalctl -b -u tlsward --no-pager | grep 'PRIVATE KEY'").out, "a key in the journal")
    return f"{found}"


@scenario()
def core_dump(vm):
    """No core is dumped of it, even where the system dumps all; a process without our measures leaves one."""
    fresh(vm, unit_changes="[Service]\nLimitCORE=infinity\n")
    vm.ok("rm -f /run/core.*; sysctl -q -w kernel.core_pattern='|/usr/bin/tee /run/core.%p'")
    victim = vm.ok("systemd-run --quiet --collect --unit=victim -p LimitCORE=infinity sleep 999; systemctl show -P MainPID victim")
    vm.ok(f"kill -ABRT {victim}")
    vm.until(f"test -s /run/core.{victim}")
    process = pid(vm)
    vm.ok(f"kill -ABRT {process}")
    vm.until(f"test $(systemctl show -P MainPID tlsward) != {process}", seconds=30)
    vm.until("systemctl is-active tlsward", seconds=30)
    cores = vm.ok("ls /run/core.*")
    expect_equal(cores, f"/run/core.{victim}", "cores")
    expect_equal(show(vm, "NRestarts"), "1", "NRestarts")
    vm.ok("rm -f /run/core.*; sysctl -q -w kernel.core_pattern=core")
    return "none of it; one of the other process"


@scenario()
def tracing(vm):
    """A process of the same user can neither trace it nor look into it; another of that user it can."""
    fresh(vm)
    as_user = "setpriv --reuid tlsward --regid tlsward --clear-groups"
    other = vm.ok(f"systemd-run --quiet --collect --unit=victim -p User=tlsward sleep 999; systemctl show -P MainPID victim")
    attach = "python3 /files/guest/freeze.py"
    vm.ok("sysctl -q -w kernel.yama.ptrace_scope=0")
    done = vm.run(f"timeout 5 {as_user} {attach} {other} sleep")
    expect(done.code == 124 and done.out.strip() == other, f"the control: {done}")
    process = pid(vm)
    said = vm.fails(f"timeout 5 {as_user} {attach} {process} worker-", code=1)
    expect("Operation not permitted" in said, said)
    for file in ("mem", "environ", "fd/0"):
        said = vm.fails(f"{as_user} head -c 1 /proc/{process}/{file}")
        expect("Permission denied" in said, said)
    vm.run("systemctl stop victim")
    return said.strip()


@scenario()
def low_port(vm):
    """A port below 1024 by the drop-in that docs/systemd.md gives."""
    text = documented("systemd.md", "Ports below 1024")
    fresh(vm, CONFIG + ECHO.replace("7001", "389"), text)
    expect_equal(call(vm, 389), "client hello", "the call")
    printed = vm.ok("systemd-analyze security --no-pager tlsward.service")
    score = re.search(r"Overall exposure level for \S+: ([\d.]+)", printed)[1]
    return f"served on 389; exposure {score} then"


# --- The package's further life -------------------------------------------------------------------


@scenario()
def reboot(vm):
    """Enabled, it is there after a boot, with nobody's help."""
    fresh(vm)
    vm.ok("systemctl enable tlsward")
    vm.reboot()
    vm.until("systemctl is-active multi-user.target", seconds=60)
    # The upstream was not enabled.
    start_upstream(vm)
    expect_equal(show(vm, "ActiveState"), "active", "ActiveState")
    expect_equal(call(vm), "client hello", "the call")
    vm.ok("systemctl disable tlsward")
    return f"active; Status: {show(vm, 'StatusText')}"


@scenario(short=True)
def upgrade(vm):
    """A newer package is installed under load: the new process serves, no call refused, none broken."""
    fresh(vm)
    changed = vm.ok("md5sum /etc/tlsward/config.toml")
    before = pid(vm)
    with Load(vm, [7001]) as load:
        at = load.now()
        vm.ok("apt-get install -q -y -o Dpkg::Options::=--force-confold /files/newer.deb", seconds=120)
        vm.until("systemctl is-active tlsward")
    expect(pid(vm) != before, "the old process still runs")
    version = vm.ok("dpkg-query -W -f '${Version}' tlsward")
    expect_equal(vm.ok("md5sum /etc/tlsward/config.toml"), changed, "the configuration")
    expect_equal(vm.run("systemctl is-enabled tlsward").out.strip(), "disabled", "is-enabled")
    return f"{version}: {load.all_well(at)}"


@scenario(short=True)
def remove(vm):
    """Removing stops it and keeps configuration and keys; a purge takes the configuration, and never a key."""
    fresh(vm)
    vm.ok("apt-get remove -q -y tlsward", seconds=120)
    expect_equal(call_fails(vm), "refused", "the call")
    vm.ok("test -f /etc/tlsward/config.toml && ! test -e /usr/bin/tlsward")
    vm.ok("rm -rf /etc/systemd/system/tlsward*.d; systemctl daemon-reload; systemctl reset-failed")
    expect_equal(vm.run("pgrep tlsward").out, "", "processes")
    vm.ok("apt-get purge -q -y tlsward", seconds=120)
    vm.ok("test -f /etc/tlsward/certs/client.key && ! test -e /etc/tlsward/config.toml")
    left = vm.run("systemctl list-unit-files --no-legend 'tlsward*'").out
    expect_equal(left, "", "units")
    return "stopped; configuration gone after the purge, keys left"
