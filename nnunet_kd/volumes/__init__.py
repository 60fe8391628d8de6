"""Files of images and segmentations: which belong to a case, whether they are whole, read by the dataset's reader, written.

Must not know models, trainings or metrics. Everything that lists, opens, checks or writes volumes does it through here.
"""
