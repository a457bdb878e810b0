"""The servicers of TrainingService and ModelService, and the mapping between protobuf and the domain."""
