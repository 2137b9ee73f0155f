"""The league of all methods on one task: who takes part, one run, step times, and the page made of them."""
