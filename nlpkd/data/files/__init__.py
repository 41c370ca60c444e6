"""Files of rows, and the tables and data sets that are made of them."""
