"""The command line as `python -m nlpkd`."""

from nlpkd.cli import main

if __name__ == "__main__":
    main()
