"""The rules of the log and of its folds: pure values and functions, and orchestration over ports."""
