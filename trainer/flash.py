"""Install flash-attn on a new machine: `python -m trainer.flash RECIPE [CONSTRAINTS]`.

Part of a VM's set-up. Users' copies of task files contain this module name, so it must not change.
"""

import sys

from trainer.build_cache.flash_attn_wheel import main

if __name__ == "__main__":
    sys.exit(main())
