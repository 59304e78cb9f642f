"""The room of the zero-downtime upgrade: many sites and servers, one plan. Imports core and nothing else of ours."""
