"""Commands of other extraction systems, in their own words."""
