"""Octets <-> frozen values; no keys, no policy.

A decoder is total: it gives a frozen value or raises WireError, nothing else. ``encode`` never
fails on a value that ``decode`` gave. Reserved bits are zero when sent and ignored when read.
"""
