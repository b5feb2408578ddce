"""What a power cut may leave of real workloads: recorded, materialised, and opened again."""
