"""What a step costs: features of a plan, and models that turn them into nanoseconds."""
