"""The rules of prediction: which model answers, what it eats, how calls share a batch, when a version may serve."""
