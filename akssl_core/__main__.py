"""`python -m akssl_core` is the `akssl` command."""

from akssl_core.cli import main

if __name__ == "__main__":
    main()
