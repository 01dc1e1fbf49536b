"""What the kernel's IPsec counts has a meaning for people."""

from tunnelwrap.dataplane.xfrm_statistics import MEANINGS, read_statistics, since


def test_every_counter_of_this_kernel_has_a_meaning() -> None:
    assert set(read_statistics()) - set(MEANINGS) == set()


def test_only_what_has_grown_is_told() -> None:
    now = read_statistics()
    grown = {name: 3 for name in list(now)[:2]}
    before = {name: value - grown.get(name, 0) for name, value in now.items()}

    assert since(before) == grown
