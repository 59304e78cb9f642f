"""Disks, slots and how they are booted: everything that knows what a partition is."""
