"""Which slot boots: the state (`state`), the loaders that obey it (`grub`, `systemd_boot`), and one contract for both
(`contract`, `backend`).
"""
