"""The command line: thin functions over the verbs. The only place that prints and exits."""
