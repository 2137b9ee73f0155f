"""Reading, printing and verifying `torch.fx` graphs. Nothing here decides what a graph means."""
