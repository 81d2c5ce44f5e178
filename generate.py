"""alpaca-lora's generate.py: the same flags, the page served by Suri."""

import sys

from suri.cli.main import main

if __name__ == "__main__":
    main(["chat", *sys.argv[1:]])
