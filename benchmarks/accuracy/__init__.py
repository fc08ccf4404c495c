"""How much a model loses when it is quantised, by format and method."""
