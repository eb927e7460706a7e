"""The page on which a browser runs an exported model. Needs the light dependencies only."""
