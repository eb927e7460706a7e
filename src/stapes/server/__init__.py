"""Models over HTTP. Needs the light dependencies and those of the extra serve."""
