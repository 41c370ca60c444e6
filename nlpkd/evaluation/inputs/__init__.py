"""What a measurement is given: its arguments, held-out rows, files of models; looked at before anything is run."""
