"""The demonstration: data, teacher, student with and without distillation, predictions, a table and a picture."""
