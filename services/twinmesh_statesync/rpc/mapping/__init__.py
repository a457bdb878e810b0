"""Where protobuf stops: messages to values of the domain and back."""
