"""Training: learns models of twins from their history, proves them on data they have not seen, keeps their versions.

Owns runs, models, versions and artifacts (schema ``training``). Promises: a dataset is read as of one log offset;
nothing at or after a window's end feeds it; versions are selected on the calibration part, reported on held-out data;
only a version that beats seasonal-naive and the closed-form gate is promoted by a run; artifacts are ONNX with scaling,
imputation and intervals inside the graph. Torch lives in worker processes (``python -m twinmesh_training.worker``).
"""
