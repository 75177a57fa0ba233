"""python -m hippo."""

from hippo.cli.main import main

if __name__ == "__main__":
    main()
