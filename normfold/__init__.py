"""normfold."""
