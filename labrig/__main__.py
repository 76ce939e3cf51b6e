"""`python -m labrig` is the command `labrig`."""

from labrig.cli import main

if __name__ == "__main__":
    main()
