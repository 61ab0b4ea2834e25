"""What a model costs at run time."""
