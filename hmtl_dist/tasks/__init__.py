"""The tasks a hybrid multi-task model is trained on, and how their losses become one."""
