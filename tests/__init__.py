"""The tests, and the models they are run on."""
