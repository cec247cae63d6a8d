"""All that runs the model: a batch of several students' jobs in, every job of it answered; knows no queue."""
