"""``python -m normfold``."""

from normfold.cli import main

main()
