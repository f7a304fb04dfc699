"""`python -m hmtl_dist` is `hmtl-dist`."""

from hmtl_dist.cli import main

if __name__ == "__main__":
    main()
