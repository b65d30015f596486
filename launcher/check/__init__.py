"""`notus-launch check`, and the same before every launch: what a paid machine would only find out later."""
