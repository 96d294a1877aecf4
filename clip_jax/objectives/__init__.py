"""The losses of image and text features, on one device or on a mesh.

`contrastive.softmax_loss` is the paper's loss (figure 3) in ten lines, and
`sigmoid.sigmoid_loss` is SigLIP's. `sharded` computes the same numbers with the
rows spread over devices: `all_gather_form` has the all-gather. To add a loss,
add a row to `registry.OBJECTIVES`.
"""
