"""`python -m peftc`: the command line, also under launchers that want a module."""

from peftc.cli import main

if __name__ == "__main__":
    main()
