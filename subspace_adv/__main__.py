"""The command line as `python -m subspace_adv`."""

from subspace_adv.cli import main

if __name__ == "__main__":
    main()
