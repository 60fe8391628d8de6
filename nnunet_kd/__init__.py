"""Knowledge distillation for nnU-Net v2.

Kept free of imports: this module runs whenever Python starts in an environment that has the package (see `_autoload`).
"""

__version__ = "0.1.0"
