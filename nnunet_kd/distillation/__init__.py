"""Settings, frozen teachers, features and targets, and the objectives. Knows nothing of trainers."""
