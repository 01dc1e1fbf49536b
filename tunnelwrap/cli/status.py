"""``tunnelwrap status``: what a running client or gateway is doing."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import click

from tunnelwrap.config.load import control_socket
from tunnelwrap.daemon.control import ask
from tunnelwrap.errors import ControlError

_TIMEOUT_S: Final = 5.0
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


@click.command(short_help="Show what a running tunnelwrap is doing.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--kernel", is_flag=True, help="Show the SAs and policies that the kernel has.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(file: Path, *, kernel: bool, as_json: bool) -> None:
    """Show the IKE SAs and Child SAs of the tunnelwrap that runs with FILE.

    Of a relay or a wrapper, which know nothing of SAs, show the ways that they keep open.

    With --kernel, show what the kernel's IPsec has of it, where that is not as it was told to be,
    and what it dropped, whosever packets those were.

    \b
    Exit status: 0 it runs, 1 it does not, or has nothing in the kernel.
    """
    result = _asked(control_socket(file), kernel=kernel)
    if as_json:
        click.echo(json.dumps(result))
        return
    if kernel:
        click.echo("\n".join(_kernel_lines(result)))
        return
    if "ways" in result:
        click.echo("\n".join(_wrapper_lines(result)))
        return
    click.echo(_headline(result))
    if isinstance(certificate := result.get("certificate"), dict):
        click.echo("\n".join(_certificate(certificate)))
    for sa in _rows(result["ike_sas"]):
        click.echo()
        click.echo("\n".join(_lines(sa)))


def _asked(path: Path, *, kernel: bool) -> dict[str, object]:
    result = ask(path, "status", _TIMEOUT_S)
    if kernel and "ways" in result:
        why = "has no SAs, in the kernel or elsewhere; status without --kernel shows its ways"
        raise ControlError(f"{result['role']} {result['name']} {why}")
    return ask(path, "kernel", _TIMEOUT_S) if kernel else result


def _headline(result: Mapping[str, object]) -> str:
    count = len(_rows(result["ike_sas"]))
    peers = "no peer" if count == 0 else "1 peer" if count == 1 else f"{count} peers"
    plane, of_streams = result["data_plane"], result.get("data_plane_of_streams")
    more = f"; of streams {of_streams}" if of_streams not in (None, plane) else ""
    return f"{result['role']} {result['name']}: {peers}, data plane {plane}{more}"


def _certificate(own: Mapping[str, object]) -> Iterator[str]:
    """What is shown on the TLS ports, and for how long."""
    if own["not_after"] is None:
        yield "  TLS        no certificate yet"
    else:
        yield f"  TLS        {_joined(own['names'])} until {own['not_after']} ({own['source']})"
    if own["problem"] is not None:
        yield f"             {own['problem']}"


def _lines(sa: Mapping[str, object]) -> Iterator[str]:
    """What there is to say of one peer."""
    children = _rows(sa["child_sas"])
    suites = dict.fromkeys([sa["ike_suite"], *(child["esp_suite"] for child in children)])
    yield str(sa["peer_identity"])
    yield f"  at         {sa['peer']} over {sa['carrier']}, for {_duration(sa['seconds'])}"
    yield f"  addresses  {_joined(sa['addresses'])}"
    if sa["waits_for_traffic"]:
        yield "  carries    nothing, waiting for traffic"
    for child in children:
        yield f"  carries    {_joined(child['local_ts'])} === {_joined(child['peer_ts'])}"
    amounts = (_amount(child[key] for child in children) for key in ("octets_in", "octets_out"))
    yield "  traffic    {} in, {} out".format(*amounts)
    yield f"  suites     {_joined(list(suites))}"


def _wrapper_lines(result: Mapping[str, object]) -> Iterator[str]:
    """What there is to say of a relay or a wrapper."""
    ways = _rows(result["ways"])
    count = f"{len(ways)} way{'' if len(ways) == 1 else 's'}"
    yield f"{result['role']} {result['name']} to {result['to']}: {count}"
    for way in ways:
        where = f"{way['peer']} over {way['carrier']}" if way["is_connected"] else "not connected"
        amounts = (_amount([way[key]]) for key in ("octets_in", "octets_out"))
        yield ""
        yield f"{way['local']}"
        yield f"  at         {where}, for {_duration(way['seconds'])}"
        yield "  traffic    {} in, {} out".format(*amounts)


def _kernel_lines(result: Mapping[str, object]) -> Iterator[str]:
    """What there is to say of the kernel."""
    sas, policies, differences = (_rows(result[key]) for key in ("sas", "policies", "differences"))
    verdict = "not as they should be" if differences else "as they should be"
    counts = f"SAs {result['total_sas']}, policies {result['total_policies']}"
    yield f"in the kernel: {counts}, {verdict}"
    yield from (f"  difference {each}" for each in differences)
    for sa in sas:
        ports = "-".join(str(port) for port in _rows(sa["udp_ports"]))
        within = f" in UDP {ports}" if ports else ""
        by = f" by {sa['offloaded_to']}" if sa["offloaded_to"] else ""
        carried = f"{sa['packets']} packets, {_amount([sa['octets']])}"
        yield f"  {sa['protocol']} {sa['spi']} from {sa['source']} to {sa['destination']}"
        yield f"    {sa['mode']}{within}{by}, {carried}{_refused(sa)}"
    for policy in policies:
        spis = f" by {_joined(policy['spis'])}" if policy["spis"] else ""
        yield f"  {policy['direction']:4} {policy['selector']}{spis}"
    for each in _rows(result["dropped"]):
        yield f"  dropped    {each['packets']} ({each['counter']}): {each['meaning']}"


def _refused(sa: Mapping[str, object]) -> str:
    counts = {"replayed": sa["replayed"], "not authentic": sa["not_authentic"]}
    return "".join(f", {count} {name}" for name, count in counts.items() if count)


def _rows(value: object) -> list[dict[str, object]]:
    return value if isinstance(value, list) else []


def _joined(values: object) -> str:
    return ", ".join(str(value) for value in _rows(values)) or "-"


def _amount(counts: Iterable[object]) -> str:
    """Octets in the unit that makes them short."""
    octets = float(sum(count for count in counts if isinstance(count, int)))
    for unit in _UNITS[:-1]:
        if octets < 1024:
            return f"{octets:.0f} {unit}" if unit == "B" else f"{octets:.1f} {unit}"
        octets /= 1024
    return f"{octets:.1f} {_UNITS[-1]}"


def _duration(seconds: object) -> str:
    total = int(seconds) if isinstance(seconds, int | float) else 0
    hours, rest = divmod(total, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}"
