"""The command ``python tests/make_golden.py``; what it does is in helpers/make_golden.py."""

from helpers.make_golden import main

if __name__ == "__main__":
    main()
