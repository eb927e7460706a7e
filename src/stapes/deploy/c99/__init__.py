"""Export to plain C99: front end and network in static memory."""
