"""Checkpoints: a training state and what its arrays mean, kept by Orbax.

    WORKDIR/checkpoints/STEP/
      params, opt_state   arrays; of a ResNet, batch_stats too
      ema                 arrays: averaged weights, with optimizer.ema_decay
      teacher             arrays, with self-distillation: its moving averages
      description         JSON: model, tokenizer, preprocessing
      position            JSON: step, and the seed that orders the data

A checkpoint is written under a temporary name in the background and renamed
when it is whole, so that a run can be killed at any moment. The description
travels with the arrays: no flag can read them with another activation,
tokenizer or image size.
"""
