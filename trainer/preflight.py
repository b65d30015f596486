"""Check a new machine against the recipe: `python -m trainer.preflight RECIPE`.

Part of a VM's set-up. Users' copies of task files contain this module name, so it must not change.
"""

import sys

from trainer.supervisor.preflight import main

if __name__ == "__main__":
    sys.exit(main())
