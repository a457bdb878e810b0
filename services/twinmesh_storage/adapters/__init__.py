"""One module per outside system; each implements ports of the domain."""
