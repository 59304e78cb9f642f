"""Where traffic goes, and whether any is left: dispatchers, virtual IPs, live calls (docs/zdu-drivers.md)."""
