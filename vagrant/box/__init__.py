"""Base boxes for Vagrant, built from release bundles; what a Vagrantfile has to know of an installation."""
