"""Report a command of the set-up that failed: `python -m trainer.failed_start COMMAND LOG`.

A command of a VM's set-up. Its name is in task files that people have copied, so it stays where it is.
"""

import sys

from trainer.supervisor.failed_start import main

if __name__ == "__main__":
    sys.exit(main())
