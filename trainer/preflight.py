"""Check a new machine against the recipe: `python -m trainer.preflight RECIPE`.

A command of a VM's set-up. Its name is in task files that people have copied, so it stays where it is.
"""

import sys

from trainer.supervisor.preflight import main

if __name__ == "__main__":
    sys.exit(main())
