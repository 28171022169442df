"""A task, a method and an architecture that a plug-in brings, for the tests of plug-ins."""
