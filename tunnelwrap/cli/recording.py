"""The options of ``serve`` and ``connect`` that write down what Wireshark needs."""

from pathlib import Path

import click

key_log_option = click.option(
    "--key-log",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="DANGEROUS: write the keys of all SAs to DIR, as WIRESHARK_CONFIG_DIR=DIR reads them.",
)
pcap_option = click.option(
    "--pcap",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write each IKE message to FILE, encrypted as it travels, and as if UDP carried it.",
)
