"""``python -m qmath``: the command line, where its script is not on the path."""

from qmath.cli import main

if __name__ == "__main__":
    main()
