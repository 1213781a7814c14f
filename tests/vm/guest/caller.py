"""Callers of tlsward, in the clear.

caller.py once PORT             one call; prints the answer, or how it failed (exit code 1)
caller.py hold PORT SECONDS     one connection with a line each 0.2 s; prints lines answered and the end
caller.py load FILE PORT…       calls all ports from several threads until SIGTERM, then writes FILE:
                                [{"port", "began", "ended", "failure"}], failure null where all was well
Times are seconds since 1970. Failures: "refused" (nobody listened), "reset", "closed" (no answer
came), "timeout".
"""

import json
import pathlib
import signal
import socket
import sys
import threading
import time

THREADS_PER_PORT = 3
# More than the longest restart, emulated.
PATIENCE = 90


def exchange(connection, line):
    connection.sendall(line + b"\n")
    answer = b""
    while not answer.endswith(b"\n"):
        received = connection.recv(4096)
        if not received:
            raise EOFError
        answer += received
    return answer.decode().rstrip()


def call(port):
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        return exchange(connection, b"hello")


def failure(error):
    kinds = {ConnectionRefusedError: "refused", ConnectionError: "reset", EOFError: "closed"}
    for kind, word in kinds.items():
        if isinstance(error, kind):
            return word
    return "timeout"


def once(port):
    try:
        print(call(port))
    except (OSError, EOFError) as error:
        sys.exit(failure(error))


def hold(port, seconds):
    end = time.monotonic() + seconds
    lines = 0
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            while time.monotonic() < end:
                exchange(connection, b"held")
                lines += 1
                print(lines, flush=True)
                time.sleep(0.2)
    except (OSError, EOFError) as error:
        print(failure(error))
        return
    print("ended")


def load(file, ports):
    stop = threading.Event()
    calls = []

    def work(port):
        while not stop.is_set():
            began, failed = time.time(), None
            try:
                call(port)
            except (OSError, EOFError) as error:
                failed = failure(error)
            calls.append({"port": port, "began": began, "ended": time.time(), "failure": failed})
            stop.wait(0.02)

    threads = [threading.Thread(target=work, args=(port,)) for port in ports * THREADS_PER_PORT]
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    pathlib.Path(file).write_text(json.dumps(calls))


match sys.argv[1:]:
    case ["once", port]:
        once(int(port))
    case ["hold", port, seconds]:
        hold(int(port), float(seconds))
    case ["load", file, *ports]:
        load(file, [int(port) for port in ports])
    case _:
        sys.exit(__doc__)
