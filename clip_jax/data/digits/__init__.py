"""The data set `digits`: a TFDS builder package.

A small labelled data set that every machine has, since scikit-learn ships its
images; `built_in.build('digits')` builds it.
"""
