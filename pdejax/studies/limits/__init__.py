"""Which limit: depth coordinate checks with planted recipes, closures, slow clustering, and noise that tokens share."""
