"""Leases: who had which address of a pool, remembered in an SQLite file across restarts.

A peer gets the address that it asks for or had before, if that is nobody else's; else one that
nobody was ever given; else the one whose owner left the longest ago. Sessions die with the process,
so what is in the file at start is inactive. ``now`` is seconds of a clock that goes on over
restarts (wall time): it serves only to tell who left earlier.
Owns: the file.
"""

import sqlite3
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Self

from tunnelwrap.errors import PoolExhausted, StoreError
from tunnelwrap.ike.outputs import AskLease
from tunnelwrap.path import IpAddress
from tunnelwrap.store.pool import Pool

IN_MEMORY: Final = ":memory:"

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS leases (
    pool TEXT NOT NULL,
    address TEXT NOT NULL,
    version INTEGER NOT NULL,
    identity TEXT NOT NULL,
    is_active INTEGER NOT NULL,
    since REAL NOT NULL,
    PRIMARY KEY (pool, address)
) STRICT
"""


class Leases:
    """The leases of some pools.

    Args:
        path: of the file, readable by its owner alone; IN_MEMORY for none.
        pools: by name; what the file says about others, or of addresses they no longer have, is
            forgotten.

    Raises:
        StoreError: the file cannot be used.
    """

    __slots__ = ("_database", "_path", "_pools")

    def __init__(self, path: Path | str, pools: Mapping[str, Pool]) -> None:
        self._path = path
        self._pools = dict(pools)
        try:
            self._database = _open(path)
        except (sqlite3.Error, OSError) as error:
            raise self._broken(error) from error
        try:
            with self._database:
                self._database.execute(_SCHEMA)
                self._database.execute("UPDATE leases SET is_active = 0")
                self._forget_strangers()
        except (sqlite3.Error, ValueError) as error:
            self._database.close()
            raise self._broken(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lease(self, ask: AskLease, now: float) -> tuple[IpAddress, ...]:
        """Addresses for a new session: one of each IP version that is wanted and that the pool has.

        Raises:
            PoolExhausted: not all of them can be had; then none is taken.
            StoreError: there is no such pool, or it has no address of a wanted kind.
        """
        pool = self._pools.get(ask.pool)
        if pool is None:
            raise StoreError(f"no pool {ask.pool} (there are {', '.join(self._pools) or 'none'})")
        wanted = [v for v, is_wanted in ((4, ask.wants_ipv4), (6, ask.wants_ipv6)) if is_wanted]
        versions = [version for version in wanted if pool.has(version)]
        if not versions:
            raise StoreError(f"pool {ask.pool} ({pool}) has no address of the kind asked for")
        try:
            with self._database:  # all or nothing
                return tuple(self._take(pool, ask, version, now) for version in versions)
        except sqlite3.Error as error:
            raise self._broken(error) from error

    def release(self, pool: str, addresses: Iterable[IpAddress], now: float) -> None:
        """End the lease of some addresses; unknown ones are no error.

        Raises:
            StoreError: the file cannot be written.
        """
        rows = [(now, pool, str(address)) for address in addresses]
        sql = "UPDATE leases SET is_active = 0, since = ? WHERE pool = ? AND address = ?"
        try:
            with self._database:
                self._database.executemany(f"{sql} AND is_active", rows)
        except sqlite3.Error as error:
            raise self._broken(error) from error

    def active(self, pool: str) -> dict[IpAddress, str]:
        """The addresses in use, with who has them."""
        sql = "SELECT address, identity FROM leases WHERE pool = ? AND is_active"
        return {ip_address(a): identity for a, identity in self._database.execute(sql, (pool,))}

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _take(self, pool: Pool, ask: AskLease, version: int, now: float) -> IpAddress:
        own = self._inactive(ask, version, "AND identity = ? ORDER BY since DESC")
        taken = self._known(ask, version).difference(own)
        try:
            address = pool.choose(ask.peer_identity, version, taken, (*ask.requested, *own))
        except PoolExhausted:
            address = self._oldest(pool, ask, version)
        self._database.execute(
            "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, 1, ?)",
            (ask.pool, str(address), version, ask.peer_identity, now),
        )
        return address

    def _oldest(self, pool: Pool, ask: AskLease, version: int) -> IpAddress:
        left = self._inactive(ask, version, "AND identity != ? ORDER BY since")
        if not left:
            raise PoolExhausted(f"all IPv{version} addresses of pool {ask.pool} ({pool}) are taken")
        return left[0]

    def _known(self, ask: AskLease, version: int) -> set[IpAddress]:
        sql = "SELECT address FROM leases WHERE pool = ? AND version = ?"
        return {ip_address(a) for (a,) in self._database.execute(sql, (ask.pool, version))}

    def _inactive(self, ask: AskLease, version: int, which: str) -> list[IpAddress]:
        sql = "SELECT address FROM leases WHERE pool = ? AND version = ? AND NOT is_active "
        values = (ask.pool, version, ask.peer_identity)
        return [ip_address(a) for (a,) in self._database.execute(sql + which, values)]

    def _forget_strangers(self) -> None:
        rows = self._database.execute("SELECT pool, address FROM leases").fetchall()
        strangers = [(p, a) for p, a in rows if not self._has(p, ip_address(a))]
        self._database.executemany("DELETE FROM leases WHERE pool = ? AND address = ?", strangers)

    def _has(self, pool: str, address: IpAddress) -> bool:
        return pool in self._pools and address in self._pools[pool]

    def _broken(self, error: Exception) -> StoreError:
        return StoreError(f"{self._path}: {error} (without the file, all leases begin anew)")


def _open(path: Path | str) -> sqlite3.Connection:
    if path != IN_MEMORY:
        file = Path(path)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.touch(mode=0o600)
    return sqlite3.connect(path)
