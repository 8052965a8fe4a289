"""Run the command line in a process on a pseudo-terminal."""

from __future__ import annotations

import os
import subprocess
import sys


def on_terminal(width: int, *args: object, **variables: str) -> str:
    """Return what a process writes to a terminal of this width."""
    import fcntl
    import pty
    import struct
    import termios

    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {name: os.environ[name] for name in os.environ.keys() - {"COLUMNS", "LINES"}}
    environment |= {"TERM": "xterm"} | variables
    command = [sys.executable, "-m", "qmath", *map(str, args)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=end, env=environment
    ) as process:
        os.close(end)
        read = b""
        try:
            while block := os.read(terminal, 1 << 16):
                read += block
        except OSError:  # the end, on Linux
            pass
    os.close(terminal)
    assert process.returncode == 0
    return read.decode()
