"""Inference: from "which twin" to "what next".

Owns what is deployed and where calls go: the desired set of model versions and the traffic pointers. Promises that
models are executed by Triton and nowhere else, that a version serves only after it has repeated its known answers, that
rolling forth and back fails no call, that every caller gets exactly its rows, and that whatever is loaded goes on
serving while training, the store or another replica is away.
"""
