"""`python -m lorascope`: the command line without the console script."""

from lorascope.cli.app import main

if __name__ == "__main__":
    main()
