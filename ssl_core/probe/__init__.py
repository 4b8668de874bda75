"""What an encoder is worth: k-NN and linear classifiers on its frozen features, beside raw pixels and a random encoder.

One kind of evaluation a file; `report.py` runs them all and makes the table.
"""
