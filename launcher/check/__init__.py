"""`notus-launch check`, also run before every launch: find problems before paying for a machine."""
