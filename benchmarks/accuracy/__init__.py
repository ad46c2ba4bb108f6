"""What the models are worth, measured: location tokens against plain text (Table 4), and predictions to look at."""
