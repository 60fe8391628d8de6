"""What teachers say of every training case, computed once and kept on disk.

Must not know trainers: it reads and writes maps, and says which of them a student may learn from.
"""
