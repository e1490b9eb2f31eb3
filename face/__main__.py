"""`python -m xopt`"""

from __future__ import annotations

from xopt.cli.main import main

if __name__ == "__main__":
    main()
