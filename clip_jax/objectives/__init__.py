"""The losses of image and text features, and how devices share the work.

`contrastive.softmax_loss` is the paper's loss (figure 3) in ten lines, and
`sigmoid.sigmoid_loss` that of SigLIP. `sharded` computes the same numbers with
the rows spread over devices: `all_gather_form` holds the all-gather. A loss of
one's own is a row of `registry.OBJECTIVES`.
"""
