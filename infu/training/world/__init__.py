"""The mini world: people that do not exist, rendered with exact labels, to train and judge the mini model."""
