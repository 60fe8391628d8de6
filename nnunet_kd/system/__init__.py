"""Files (written atomically, checked), processes, and what is installed or shipped.

Must not know images, networks and nnU-Net.
"""
