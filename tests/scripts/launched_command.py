"""A command of `dmpo-trl` in each process of `torchrun`, which ends badly always if it does so now and then."""

import sys

from dmpo_trl.cli import main

if __name__ == "__main__":
    sys.setswitchinterval(1000)  # seconds: a thread gets the interpreter only where it is released
    main(sys.argv[1:])
