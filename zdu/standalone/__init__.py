"""Charging on two sites: the ledger on the main database, its stand-in on a delta database while the main site is away,
and the synchronisation that brings the two together. A billing engine uses it as it is (docs/zdu-ledger.md).
"""
