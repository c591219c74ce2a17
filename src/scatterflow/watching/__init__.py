"""Parts of `scatterflow.watch`: where frames come from, the queue, the estimator, the answers and what is recorded."""
