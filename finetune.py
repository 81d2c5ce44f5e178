"""alpaca-lora's finetune.py: the same flags and defaults, trained by Suri."""

import sys

from suri.cli.main import main

if __name__ == "__main__":
    main(["finetune", *sys.argv[1:]])
