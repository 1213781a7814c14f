"""A virtual machine and what can be asked of it.

It has no network. Commands go over a virtio port to guest/agent.py, files come on a second disk,
the console goes into a file. What the guest writes to its disk is gone with it.
"""

import contextlib
import json
import os
import pathlib
import queue
import shlex
import shutil
import socket
import subprocess
import tempfile
import threading
import time

import image as images


class Failed(Exception):
    """What was seen is not what should be."""


class Done:
    """What came of a command: its exit code and what it wrote."""

    def __init__(self, command, code, out, err):
        self.command, self.code, self.out, self.err = command, code, out, err

    def __str__(self):
        return f"{self.command}: exit code {self.code}\n{self.out}{self.err}".rstrip()


class Machine:
    """A booted guest, for `with`: ended with the block, whatever happened."""

    def __init__(self, image, files, logs, tcg=False, deadline=None):
        """`files`: a directory that the guest sees as /files. `logs`: where the console is written."""
        self.image, self.files, self.logs = image, files, logs
        self.tcg = tcg
        # Emulation takes up to this many times as long.
        self.patience = 4 if tcg else 1
        self.deadline = deadline
        self.answers = {}
        self.last_id = 0
        self.qemu = None

    def __enter__(self):
        # A short path: a unix socket's has room for 107 bytes.
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="tlsward-vm-"))
        try:
            images.filesystem(self.files, self.directory / "files.ext4", "512M", "files")
            subprocess.run(
                ["cp", "--sparse=always", self.image.disk, self.directory / "disk.ext4"], check=True
            )
            self.boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.qemu:
            self.qemu.kill()
            self.qemu.wait()
        shutil.rmtree(self.directory)

    def boot(self):
        """Starts qemu and waits for the agent."""
        self.boots = queue.Queue()
        with (self.logs / "console.log").open("ab") as console:
            self.qemu = subprocess.Popen(
                qemu(self.image, self.directory, self.tcg),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )
        self.connect()
        for _ in until(60 * self.patience, "the guest boots; see console.log"):
            if self.qemu.poll() is not None:
                raise Failed(f"qemu ended with code {self.qemu.returncode}")
            if not self.boots.empty():
                return

    def connect(self):
        path = self.directory / "control"
        self.socket = socket.socket(socket.AF_UNIX)
        for _ in until(10, "qemu opens the control socket"):
            if self.qemu.poll() is not None:
                raise Failed(f"qemu ended with code {self.qemu.returncode}")
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                pass
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        rest = b""
        with contextlib.suppress(OSError):  # qemu is gone
            while received := self.socket.recv(65536):
                *lines, rest = (rest + received).split(b"\n")
                for line in lines:
                    message = json.loads(line)
                    if "boot" in message:
                        self.boots.put(message["boot"])
                    else:
                        self.answers.pop(message["id"]).put(message)

    def begin(self, command, seconds=30):
        """Starts a command (bash), and returns a function that waits for it."""
        seconds *= self.patience
        if self.deadline:
            seconds = min(seconds, max(1, self.deadline - time.monotonic()))
        self.last_id += 1
        answer = self.answers[self.last_id] = queue.Queue()
        request = {"id": self.last_id, "command": command, "timeout": seconds}
        self.socket.sendall(json.dumps(request).encode() + b"\n")

        def wait():
            try:
                message = answer.get(timeout=seconds + 10)
            except queue.Empty:
                raise Failed(f"{command}: no answer from the guest") from None
            return Done(command, message["code"], message["out"], message["err"])

        return wait

    def run(self, command, seconds=30):
        """Runs a command, whatever its exit code."""
        return self.begin(command, seconds)()

    def ok(self, command, seconds=30):
        """Runs a command that must succeed; what it wrote to standard output, without the last newline."""
        done = self.run(command, seconds)
        if done.code != 0:
            raise Failed(str(done))
        return done.out.rstrip("\n")

    def fails(self, command, code=None, seconds=30):
        """Runs a command that must fail (with this code); both outputs."""
        done = self.run(command, seconds)
        if done.code in (0, 124) or code not in (None, done.code):
            raise Failed(f"should have failed{f' with code {code}' if code else ''}: {done}")
        return done.out + done.err

    def until(self, command, seconds=15, every=0.1):
        """Runs a command again and again until it succeeds; its standard output."""
        for _ in until(seconds * self.patience, command, every):
            done = self.run(command, seconds)
            if done.code == 0:
                return done.out.rstrip("\n")
        raise Failed(f"not within {seconds * self.patience} s: {done}")

    def write(self, path, text, mode="0644", owner="root:root"):
        """Writes a file in the guest, by rename, with the directories on the way."""
        new = shlex.quote(f"{path}.new")
        self.ok(
            f"mkdir -p $(dirname {path}) && printf %s {shlex.quote(text)} > {new}"
            f" && chmod {mode} {new} && chown {owner} {new} && mv {new} {path}"
        )

    def reboot(self):
        """Another boot of the same disk, in a new qemu: after a reset within one, emulation crawls."""
        self.begin("systemctl --no-block reboot")
        self.qemu.wait(timeout=60 * self.patience)
        self.boot()


def console(image, files, tcg):
    """A guest with its console on this terminal, until it is powered off; qemu's exit code."""
    with tempfile.TemporaryDirectory(prefix="tlsward-vm-") as directory:
        directory = pathlib.Path(directory)
        images.filesystem(files, directory / "files.ext4", "512M", "files")
        subprocess.run(["cp", "--sparse=always", image.disk, directory / "disk.ext4"], check=True)
        command = qemu(image, directory, tcg, more="")
        command[command.index("-serial") + 1] = "mon:stdio"
        return subprocess.run(command).returncode


def until(seconds, what, every=0.05):
    """A loop's turns until the time is up; then it raises. The loop ends it by `break` or `return`."""
    end = time.monotonic() + seconds
    while True:
        yield
        if time.monotonic() > end:
            raise Failed(f"not within {seconds} s: {what}")
        time.sleep(every)


def kvm():
    """Whether this user may use the processor's virtualisation.

    /dev/kvm alone does not say so: KVM without the processor's help (PVM) takes no ordinary kernel.
    """
    flags = set(pathlib.Path("/proc/cpuinfo").read_text().split())
    return bool({"vmx", "svm"} & flags) and os.access("/dev/kvm", os.R_OK | os.W_OK)


# Nobody answers there: it would start again and again.
NO_LOGIN = "systemd.mask=serial-getty@ttyS0.service"


def qemu(image, directory, tcg, more=NO_LOGIN):
    accelerator = ["-accel", "tcg,thread=multi", "-cpu", "max"] if tcg else ["-accel", "kvm", "-cpu", "host"]
    return [
        "qemu-system-x86_64", "-machine", "q35", *accelerator, "-smp", "2", "-m", "1024",
        "-nodefaults", "-nographic",
        "-kernel", image.kernel, "-initrd", image.initrd,
        "-append", f"root=/dev/vda rw console=ttyS0 quiet systemd.show_status=error {more}",
        "-serial", "stdio", "-monitor", "none", "-no-reboot",
        "-drive", f"file={directory / 'disk.ext4'},format=raw,if=virtio,cache=unsafe",
        "-drive", f"file={directory / 'files.ext4'},format=raw,if=virtio,readonly=on",
        "-device", "virtio-rng-pci",
        "-chardev", f"socket,id=control,path={directory / 'control'},server=on,wait=off",
        "-device", "virtio-serial", "-device", "virtserialport,chardev=control,name=control",
    ]  # fmt: skip
