"""``python -m posteriori``: the command line, where the interpreter is known and the script is not on the path."""

from posteriori.cli import main

if __name__ == "__main__":
    main()
