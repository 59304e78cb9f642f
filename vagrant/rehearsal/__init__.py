"""Rehearsals of upgrades on machines."""
