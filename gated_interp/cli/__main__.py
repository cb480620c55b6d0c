"""``python -m gated_interp.cli``."""

from gated_interp.cli.app import main

if __name__ == "__main__":
    main()
