"""The numbers: ranking, the metrics of data sets, calibration, intervals."""
