"""The whole zero-downtime upgrade, rehearsed on hosts that are network namespaces (docs/zdu-rehearsal.md)."""
