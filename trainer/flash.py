"""Get flash-attn onto a new machine: `python -m trainer.flash RECIPE [CONSTRAINTS]`.

A command of a VM's set-up. Its name is in task files that people have copied, so it stays where it is.
"""

import sys

from trainer.build_cache.flash_attn_wheel import main

if __name__ == "__main__":
    sys.exit(main())
