"""iproute2, the second opinion on what the kernel was told."""

import shlex
import subprocess


def ip(words: str) -> str:
    """Run ``ip`` and give back what it prints, its white space made single."""
    command = ["ip", *shlex.split(words)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return " ".join(done.stdout.split())
