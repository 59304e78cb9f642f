"""Rehearsal machines: real Debian systems that boot through OVMF and GRUB on this machine, under QEMU."""
