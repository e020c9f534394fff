"""What a step costs: models that turn its work into nanoseconds."""
