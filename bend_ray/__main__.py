"""``python -m bend_ray`` is ``bend``."""

from bend_ray.cli.main import main

if __name__ == "__main__":
    main()
