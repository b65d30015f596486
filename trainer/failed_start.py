"""Report a failed command of the set-up: `python -m trainer.failed_start COMMAND LOG`.

Part of a VM's set-up. Users' copies of task files contain this module name, so it must not change.
"""

import sys

from trainer.supervisor.failed_start import main

if __name__ == "__main__":
    sys.exit(main())
