"""`python -m kontext_fast`: the command `kontext`, where it is not on the path."""

from kontext_fast.cli.main import main

if __name__ == "__main__":
    main()
