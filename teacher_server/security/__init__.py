"""Who may do what: tokens, identities, TLS, what one identity may take."""
