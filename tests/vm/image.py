"""The guest's disk: a Debian made by mmdebstrap, as one ext4 file, kept under a hash of its recipe.

The image knows nothing of tlsward: the package, the tools of guest/ and what the run needs come on
a second disk, made anew for each run. So one image serves until this file changes.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile

MIRROR = "http://deb.debian.org/debian"
PACKAGES = [
    # What is judged by, as Debian boots it.
    "systemd", "systemd-sysv", "udev", "dbus", "libpam-systemd",
    "linux-image-cloud-amd64", "initramfs-tools",
    # What the tests' own side of the traffic needs, and how they look at sockets.
    "python3", "openssl", "iproute2", "procps",
    # What the package recommends; there is no network from which to get more.
    "ca-certificates",
]  # fmt: skip
LEFT_OUT = ["/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*", "/usr/share/info/*"]
SIZE = "1536M"

# Files of the image. The agent itself comes on the second disk.
FILES = {
    "/etc/fstab": "/dev/vda / ext4 defaults 0 0\nLABEL=files /files ext4 ro 0 0\n",
    "/etc/hostname": "guest\n",
    "/etc/hosts": "127.0.0.1 localhost guest upstream.test\n::1 localhost\n",
    "/etc/systemd/system/agent.service": """\
[Unit]
Description=Runs what the test asks for
RequiresMountsFor=/files
[Service]
ExecStart=/usr/bin/python3 /files/guest/agent.py
Restart=always
RestartSec=1
[Install]
WantedBy=multi-user.target
""",
    # `check.py --shell`. There is no network, and no other way in.
    "/etc/systemd/system/serial-getty@ttyS0.service.d/root.conf": """\
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200 - $TERM
""",
}
# A small initrd: the emulated machine reads and unpacks it slowly.
INITRD = {
    "/etc/initramfs-tools/conf.d/guest": "MODULES=list\n",
    "/etc/initramfs-tools/hooks/guest": """\
#!/bin/sh
[ "$1" = prereqs ] && exit 0
. /usr/share/initramfs-tools/hook-functions
manual_add_modules virtio_pci virtio_blk ext4
""",
}


class Image:
    """disk, kernel and initrd: paths of files that nobody writes to."""

    def __init__(self, directory):
        self.disk = directory / "disk.ext4"
        self.kernel = directory / "vmlinuz"
        self.initrd = directory / "initrd"


def image(release, cache):
    """The image of a release ("trixie", "bookworm"): from the cache, or made. Root only."""
    recipe = hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest()[:12]
    directory = cache / f"{release}-{recipe}"
    if not directory.exists():
        cache.mkdir(parents=True, exist_ok=True)
        for old in cache.glob(f"{release}-*"):
            shutil.rmtree(old)
        # Under its name only when it is whole.
        with tempfile.TemporaryDirectory(prefix="making-", dir=cache) as making:
            making = pathlib.Path(making)
            make(release, making)
            (making / "image").rename(directory)
    return Image(directory)


def make(release, directory):
    root = directory / "root"
    out = directory / "image"
    out.mkdir()
    hooks = directory / "hooks"
    for path, text in INITRD.items():
        write(hooks, path, text, 0o755)
    command = ["mmdebstrap", "--quiet", "--variant=apt", f"--include={','.join(PACKAGES)}"]
    command += [f"--dpkgopt=path-exclude={path}" for path in LEFT_OUT]
    command += ["--aptopt=APT::Install-Recommends false"]
    # Before the kernel is installed, which makes the initrd.
    command += [f'--essential-hook=cp -a {hooks}/. "$1"']
    logged([*command, release, root, MIRROR])
    for path, text in FILES.items():
        write(root, path, text)
    (root / "files").mkdir()
    # LEFT_OUT is meant for the image; the package is installed whole.
    (root / "etc/dpkg/dpkg.cfg.d/99mmdebstrap").unlink()
    # Each boot of a copy is a machine of its own.
    (root / "etc/machine-id").write_text("")
    logged(["systemctl", f"--root={root}", "enable", "agent.service"])
    (kernel,) = root.glob("boot/vmlinuz-*")
    (initrd,) = root.glob("boot/initrd.img-*")
    shutil.copy(kernel, out / "vmlinuz")
    shutil.copy(initrd, out / "initrd")
    filesystem(root, out / "disk.ext4", SIZE, "root")
    shutil.rmtree(root)


def write(root, path, text, mode=0o644):
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)


def filesystem(directory, file, size, label):
    """An ext4 file of what is in the directory. Nothing is mounted for it."""
    logged(["mke2fs", "-q", "-t", "ext4", "-L", label, "-d", directory, "-E", "root_owner=0:0", file, size])


def logged(command):
    environment = os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
