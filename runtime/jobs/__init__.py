"""Files of candidates become files of rankings, in parts that are written whole or not at all."""
