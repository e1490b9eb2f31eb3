"""Files and data sets become candidates; measures of agreement and quality."""
