"""What the operator carries from release to release."""
