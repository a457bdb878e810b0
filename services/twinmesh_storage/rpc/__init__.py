"""The gRPC face: protobuf stops here."""
