"""Who may come in, who is next, and how long each may take."""
