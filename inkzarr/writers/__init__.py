"""Files that others open: NRRD, NIfTI, TIFF, slices and movies; no writer ever holds a whole volume."""
