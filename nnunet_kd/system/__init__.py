"""Files (written atomically, checked), processes and what is installed. Knows nothing of images and networks."""
