"""Stops one thread of a process for good: `freeze.py PID NAME` (the beginning of the thread's name).

As a debugger does (ptrace: seize, interrupt), for no signal stops a single thread. Prints its id,
and stays until the process ends: the thread would go on without its tracer.
"""

import ctypes
import os
import pathlib
import sys

SEIZE, INTERRUPT = 0x4206, 0x4207
WALL = 0x40000000

pid, name = sys.argv[1:]
names = pathlib.Path(f"/proc/{pid}/task").glob("*/comm")
threads = {int(path.parent.name): path.read_text().strip() for path in names}
found = [thread for thread, comm in threads.items() if comm.startswith(name)]
if not found:
    sys.exit(f"no thread is called {name}…: {sorted(threads.values())}")
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
for request in (SEIZE, INTERRUPT):
    if libc.ptrace(request, found[0], None, None) != 0:
        sys.exit(os.strerror(ctypes.get_errno()))
os.waitpid(found[0], WALL)
print(found[0], flush=True)
# A tracer is a parent: without its wait the dead process would stay, and nobody would hear of its end.
while not (os.WIFEXITED(status := os.waitpid(found[0], WALL)[1]) or os.WIFSIGNALED(status)):
    pass
