"""`python -m janus` is the command `janus`; so torchrun can start it: `torchrun -m janus ...`."""

import sys

from janus.apps.cli import main

if __name__ == "__main__":
    sys.exit(main())
