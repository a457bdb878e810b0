"""Datasets, models, evaluation and the rules of promotion: numpy in, numpy out; knows no torch, wire or database."""
