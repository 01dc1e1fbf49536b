"""Which kernels are known to be free of espintcp's flaws of 2026."""

import pytest

from tunnelwrap.dataplane.xfrm_espintcp import FIRST_FIXED, FIXED, FLAWS, why_distrusted

ANY = "#1 SMP PREEMPT_DYNAMIC Wed Jul  1 12:00:00 UTC 2026"


@pytest.mark.parametrize("series", FIXED)
def test_a_series_is_trusted_from_its_mended_release_on(series: tuple[int, int]) -> None:
    name, mended = ".".join(map(str, series)), FIXED[series]
    assert why_distrusted(f"{name}.{mended - 1}", ANY)
    for release in (f"{name}.{mended}", f"{name}.{mended}-local", f"{name}.1000-1-default"):
        assert why_distrusted(release, ANY) is None


@pytest.mark.parametrize(
    "release",
    [
        "5.10.300",  # no release of these is known to mend all three
        *("5.15.250", "7.0.50", "6.19.14"),
        *("6.8.0-60-generic", "5.14.0-503.el9.x86_64"),  # whatever their distributors have mended
        *("7.2.0-rc3", "7.2-rc3", "7.2", "unheard of", ""),
    ],
)
def test_what_is_not_known_is_not_trusted(release: str) -> None:
    why = why_distrusted(release, ANY)
    assert why is not None
    assert FLAWS in why
    assert "run at least 6.1.184, 6.6.145, 6.12.97, 6.18.40, 7.1.5 or 7.2" in why


def test_what_is_newer_than_all_of_them_is_trusted() -> None:
    major, minor = FIRST_FIXED
    for release in (f"{major}.{minor}.0", f"{major}.{minor + 1}.4-arch1-1", f"{major + 1}.0.1"):
        assert why_distrusted(release, ANY) is None


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.1.0-42-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)"),
        ("6.12.97+deb13-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.12.97-1 (2026-08-01)"),
    ],
)
def test_debians_kernels_tell_their_release_elsewhere(release: str, version: str) -> None:
    assert why_distrusted(release, version) is None


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.1.0-40-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.174-1 (2026-05-26)"),
        ("6.12.90+deb13-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.12.90-1 (2026-05-20)"),
        ("6.1.0-42-amd64", ANY),  # this is a name of Debian's ABI, and tells nothing
    ],
)
def test_debians_older_kernels_are_not_trusted(release: str, version: str) -> None:
    assert why_distrusted(release, version)
