"""Settings as schemas: strict, components by name, errors a person can read, help from the fields."""
