"""What the kernel's IPsec dropped."""

from tunnelwrap.dataplane.xfrm_statistics import read_statistics, since


def test_only_what_has_grown_is_told() -> None:
    now = read_statistics()
    grown = dict.fromkeys(list(now)[:2], 3)
    before = {name: value - grown.get(name, 0) for name, value in now.items()}

    assert since(before) == grown
