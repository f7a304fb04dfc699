"""What MLflow holds of an experiment, a suite or a sweep, as one page that needs nothing else."""
