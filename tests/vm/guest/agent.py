"""Runs commands that come on a virtio port, each in a thread; the answer goes back the same way.

One JSON object a line: {"id", "command", "timeout"} in, {"id", "code", "out", "err"} out. The first
line out is {"boot": id}. Code 124: it took longer than its time, and was killed.
"""

import json
import pathlib
import subprocess
import threading

PORT = pathlib.Path("/dev/virtio-ports/control")
sending = threading.Lock()


def send(port, message):
    line = json.dumps(message).encode() + b"\n"
    with sending:
        while line:
            line = line[port.write(line) :]


def answer(port, request):
    try:
        done = subprocess.run(
            ["/bin/bash", "-c", request["command"]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=request["timeout"],
        )
        code, out, err = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as late:
        code, out, err = 124, late.stdout or b"", late.stderr or b""
    text = {"out": out.decode(errors="replace"), "err": err.decode(errors="replace")}
    send(port, {"id": request["id"], "code": code, **text})


def main():
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with open(PORT, "r+b", buffering=0) as port:
        send(port, {"boot": boot})
        rest = b""
        while True:
            rest += port.read(65536)
            *lines, rest = rest.split(b"\n")
            for line in lines:
                threading.Thread(target=answer, args=(port, json.loads(line)), daemon=True).start()


main()
