"""Run a command with the network cut: only the loopback is left (Linux).

    python3 scripts/offline.py make test

Where the system allows no network namespace, the command runs with the network and says so;
OFFLINE=require makes that an error.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1


def loopback_up() -> None:
    """Switch on `lo`, which a new namespace has switched off; Jupyter's kernels talk over it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        request = struct.pack("16sh22x", b"lo", 0)
        flags = struct.unpack("16sh22x", fcntl.ioctl(s, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | IFF_UP))


def main(command: list[str]) -> None:
    if command[:1] == ["--inside"]:
        loopback_up()
        os.execvp(command[1], command[1:])
    if not command:
        sys.exit(__doc__)
    cut = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    here = [sys.executable, os.path.abspath(__file__), "--inside"]
    possible = shutil.which("unshare") is not None
    if possible:
        trial = subprocess.run([*cut, *here, "true"], capture_output=True, text=True)
        possible = trial.returncode == 0
    if possible:
        print("the network is cut for:", *command, flush=True)
        os.execvp(cut[0], [*cut, *here, *command])
    if os.environ.get("OFFLINE") == "require":
        sys.exit("the network could not be cut: no namespace allowed here (try as root)")
    print("NOTE: the network could NOT be cut here; running with it:", *command, flush=True)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
