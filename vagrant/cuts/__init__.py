"""Power cuts at every write: a recorded log of a disk's writes, the disks that cuts leave, and a check of each."""
