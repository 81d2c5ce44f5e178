"""`python -m suri` is the same as `suri`."""

from suri.cli.main import main

if __name__ == "__main__":
    main()
