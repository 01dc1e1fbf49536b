"""What the other tests here stand on: this kernel is not the host's, and has ESP."""

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel

ESP_SA = "src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1000 mode tunnel"
KEY = "0x000102030405060708090a0b0c0d0e0f10111213"


def test_this_kernel_is_user_mode_linux() -> None:
    assert "User Mode Linux" in Path("/proc/cpuinfo").read_text()


def test_it_takes_an_esp_sa() -> None:
    algorithm = ["aead", "rfc4106(gcm(aes))", KEY, "128"]
    subprocess.run(["ip", "xfrm", "state", "add", *ESP_SA.split(), *algorithm], check=True)
    subprocess.run(["ip", "xfrm", "state", "flush"], check=True)
