"""What several optimizers are made of: no optimizers themselves."""
