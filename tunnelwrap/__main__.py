"""``python -m tunnelwrap``."""

from tunnelwrap.cli.main import main

if __name__ == "__main__":
    main()
