"""What both sides of the conversation must agree on, byte for byte."""
