"""Where the numbers of a run go while it trains, for people to watch.

In: a run and its lines of metrics. Out: TensorBoard events, a run of Weights & Biases, one of
MLflow. Read `contract`, one of the three beside it, then `tracking`, which a training talks to.
"""
