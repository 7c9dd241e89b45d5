"""What a unit of each thing costs, and what a call's usage comes to."""
