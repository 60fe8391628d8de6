"""Public datasets into nnU-Net's raw format, and splits that keep a patient on one side.

Must not know networks. The data flow one way: a dataset's module (``brats2024``, ``isles2022``, ``msd``) finds ``Case``s in the
user's folders and describes the dataset; ``conversion`` checks the cases, writes them, and writes ``dataset.json`` and
``splits_final.json``.
"""
