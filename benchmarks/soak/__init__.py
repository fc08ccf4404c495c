"""A service under a mixed load beyond its capacity, for as long as it takes to see a leak."""
