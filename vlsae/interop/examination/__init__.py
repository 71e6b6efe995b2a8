"""What `doctor.py` is made of: tokens of a model, the fit of a dictionary to them, what-if trials, findings, their page."""
