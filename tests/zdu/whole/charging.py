"""The billing engine of a site, as `vagrant.rehearsal.sites_charging` has it; started as a program."""

from __future__ import annotations

import sys

from vagrant.rehearsal.sites_charging import account_of as account_of
from vagrant.rehearsal.sites_charging import main

if __name__ == "__main__":
    main(sys.argv[1])
