"""One module per group of commands: `add` declares their options, and the functions beside it do the work."""
